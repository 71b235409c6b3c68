"""Scoring from files to report, on the released ActivityNet-QA test split where it is at hand."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.evaluate import EvaluateJob, main, read_predictions, run
from pipeline.errors import ConfigError
from tests import judge_server as does
from tests.judge_server import JudgeServer

ACTIVITYNET = Path(__file__).parents[2].parent / "shared" / "annotations" / "activitynet-qa"
needs_activitynet = pytest.mark.skipif(
    not (ACTIVITYNET / "test_q.json").exists(),
    reason="the ActivityNet-QA test split may not be shipped with the project",
)

QUESTIONS = [
    {"question_id": "q1", "video_id": "a", "question": "is it red?", "answer": "yes", "type": "yes/no"},
    {"question_id": "q2", "video_id": "a", "question": "how many?", "answer": "2", "type": "number"},
    {"question_id": "q3", "video_id": "b", "question": "what is it?", "answer": "dog", "type": "object"},
    {"question_id": "q4", "video_id": "c", "question": "what else?", "answer": None, "type": None},
]


def written(path: Path, rows: Any) -> str:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)


def activitynet(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((ACTIVITYNET / name).read_text())
    return rows


@needs_activitynet
def test_always_answering_yes_scores_what_the_released_script_gives(tmp_path: Path) -> None:
    """1102 of 8000 on the test split: 13.8 %. Free over its 5600 questions is 19.7 %, as published 27.4 %."""
    yes = [{"question_id": row["question_id"], "answer": "yes"} for row in activitynet("test_q.json")]
    random.Random(1).shuffle(yes)
    report = run(
        EvaluateJob(
            predictions=written(tmp_path / "yes.json", yes),
            questions=str(ACTIVITYNET / "test_q.json"),
            free_published=True,
        )
    )
    official = report["official"]
    assert report["exact"]["correct"] == 1102
    assert official["all"] == report["exact"]["accuracy"] == 0.13775
    assert official["yes/no"] == 1101 / 2094
    assert official["spatial"] == 1 / 800
    assert official["free"] == 1101 / 5600
    assert official["free_published"] == 1101 / 4021
    assert report["exact"]["low"] < 0.13775 < report["exact"]["high"]
    assert (report["questions"], report["videos"], report["coverage"]) == (8000, 800, 1.0)


@needs_activitynet
def test_perfect_predictions_score_one_hundred_percent_in_any_order(tmp_path: Path) -> None:
    """Predictions, questions and answers shuffled apart from each other still meet by id."""
    questions, answers = activitynet("test_q.json"), activitynet("test_a.json")
    perfect = [{"question_id": row["question_id"], "prediction": row["answer"]} for row in answers]
    for seed, rows in enumerate((questions, answers, perfect)):
        random.Random(seed).shuffle(rows)
    report = run(
        EvaluateJob(
            predictions=written(tmp_path / "perfect.json", perfect),
            questions=written(tmp_path / "shuffled_q.json", questions),
            answers=written(tmp_path / "shuffled_a.json", answers),
        )
    )
    assert set(report["official"].values()) == {1.0}
    assert report["exact"]["accuracy"] == report["normalised"]["accuracy"] == 1.0
    assert "free_published" not in report["official"]


@needs_activitynet
def test_shuffled_files_give_the_same_report(tmp_path: Path) -> None:
    """Only the published Free reads an order, and only when asked for; everything else is equal to the last digit."""
    questions, draw = activitynet("test_q.json"), random.Random(5)
    said = [{"question_id": q["question_id"], "answer": draw.choice(["yes", "no", "2", "Red."])} for q in questions[:7000]]
    predictions = written(tmp_path / "predictions.json", said)
    straight = run(EvaluateJob(predictions=predictions, questions=str(ACTIVITYNET / "test_q.json")))
    draw.shuffle(said)
    answers = activitynet("test_a.json")
    draw.shuffle(answers)
    turned = run(
        EvaluateJob(
            predictions=written(tmp_path / "predictions.json", said),
            questions=str(ACTIVITYNET / "test_q.json"),
            answers=written(tmp_path / "answers.json", answers),
        )
    )
    assert turned == straight
    assert straight["missing"]["count"] == 1000
    assert straight["coverage"] == 7000 / 8000
    assert straight["exact"]["answered_only"] == straight["exact"]["correct"] / 7000


def test_our_own_answer_files_are_read_with_their_status(tmp_path: Path) -> None:
    """JSONL and Parquet give one report; a missing video is not answered, counts as wrong and is named."""
    rows = [
        {"question_id": "q1", "prediction": "Yes, it is.", "status": "ok"},
        {"question_id": "q2", "prediction": "two", "status": "ok"},
        {"question_id": "q3", "prediction": None, "status": "missing_video"},
    ]
    (tmp_path / "answers.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "answers.parquet")
    questions = written(tmp_path / "questions.json", QUESTIONS)
    one, other = (
        run(EvaluateJob(predictions=str(tmp_path / f"answers.{suffix}"), questions=questions))
        for suffix in ("jsonl", "parquet")
    )
    assert {**one, "predictions": None} == {**other, "predictions": None}
    assert one["dataset"] == "plain"
    assert one["statuses"] == {"missing_video": 1, "ok": 2}
    assert one["missing"] == {"count": 1, "first": ["q3"]}
    assert (one["questions"], one["without_reference"], one["coverage"]) == (3, 1, 2 / 3)
    assert (one["exact"]["accuracy"], one["normalised"]["accuracy"]) == (0.0, 2 / 3)
    assert one["per_type"]["number"]["normalised"]["accuracy"] == 1.0
    assert json.loads(json.dumps(one)) == one


def test_a_prediction_column_is_taken_before_an_answer_column(tmp_path: Path) -> None:
    """Where a file holds both, `answer` is the reference; scoring it would give a perfect run."""
    rows = [{"id": "q1", "answer": "yes", "pred": "no"}]
    report = run(
        EvaluateJob(predictions=written(tmp_path / "p.json", rows), questions=written(tmp_path / "questions.json", QUESTIONS))
    )
    assert report["exact"]["correct"] == 0


def test_unknown_ids_are_counted_and_named(tmp_path: Path) -> None:
    """A prediction for a question that nobody asked changes no score and stays visible."""
    rows = [{"question_id": "q3", "answer": "dog"}, {"question_id": "q9", "answer": "dog"}]
    report = run(
        EvaluateJob(predictions=written(tmp_path / "p.json", rows), questions=written(tmp_path / "questions.json", QUESTIONS))
    )
    assert report["unknown_ids"] == {"count": 1, "first": ["q9"]}
    assert report["exact"]["correct"] == 1


def test_two_predictions_for_one_question_need_a_decision(tmp_path: Path) -> None:
    """Equal ones are one; different ones stop the run unless it says which to take."""
    same = [{"question_id": "q1", "answer": "yes"}] * 2
    assert read_predictions(written(tmp_path / "same.json", same)).duplicates == 1
    path = written(tmp_path / "p.json", [*same, {"question_id": "q1", "answer": "no"}])
    with pytest.raises(ConfigError, match="two different predictions"):
        read_predictions(path)
    assert read_predictions(path, "first").texts == {"q1": "yes"}
    assert read_predictions(path, "last").texts == {"q1": "no"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"question_id": "z", "answer": "yes"}], "none of the 1 predicted"),
        ([{"question": "z", "answer": "yes"}], "expected a column question_id or id"),
        ([{"question_id": "q1", "text": "yes"}], "expected a column prediction or pred or answer"),
        ([{"question_id": None, "answer": "yes"}], "a row has no question_id"),
    ],
)
def test_predictions_that_cannot_be_joined_are_refused(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    """A wrong file never becomes a score of zero."""
    questions = written(tmp_path / "questions.json", QUESTIONS)
    with pytest.raises(ConfigError, match=message):
        run(EvaluateJob(predictions=written(tmp_path / "p.json", rows), questions=questions))


def test_questions_without_any_answer_cannot_be_scored(tmp_path: Path) -> None:
    """The message names the flag that is missing."""
    questions = written(tmp_path / "questions.json", [{**row, "answer": None} for row in QUESTIONS])
    with pytest.raises(ConfigError, match="--answers"):
        run(EvaluateJob(predictions=questions, questions=questions))


def test_two_runs_are_compared_question_by_question(tmp_path: Path) -> None:
    """The paired difference counts what got better and what got worse."""
    ours = [{"question_id": "q1", "answer": "yes"}, {"question_id": "q2", "answer": "two"}]
    theirs = [{"question_id": "q3", "answer": "dog"}]
    report = run(
        EvaluateJob(
            predictions=written(tmp_path / "ours.json", ours),
            questions=written(tmp_path / "questions.json", QUESTIONS),
            against=written(tmp_path / "theirs.json", theirs),
        )
    )
    exact, normalised = report["against"]["exact"], report["against"]["normalised"]
    assert (exact["difference"], exact["better"], exact["worse"]) == (0.0, 1, 1)
    assert (normalised["better"], normalised["worse"]) == (2, 1)
    assert normalised["difference"] == pytest.approx(1 / 3)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with does.judge_server() as found:
        yield found


SAID = [{"question_id": "q1", "answer": "Yes"}, {"question_id": "q2", "answer": "three"}]


def test_a_judge_stands_beside_the_offline_scores_and_changes_none(server: JudgeServer, tmp_path: Path) -> None:
    """A missing prediction is wrong with score 0 and never sent; the published rule stands beside, over judged ones only."""
    predictions, questions = written(tmp_path / "p.json", SAID), written(tmp_path / "questions.json", QUESTIONS)
    alone = run(EvaluateJob(predictions=predictions, questions=questions))
    job = EvaluateJob(predictions=predictions, questions=questions, judge_url=server.url, judge_model="some-judge")
    report = run(job)
    found = report["judge"]
    assert {name: report[name] for name in alone} == alone
    assert report["exit_code"] == 0
    assert (found["accuracy"]["correct"], found["accuracy"]["asked"], found["score"]) == (1, 3, 2.0)
    assert (found["judged_only"]["accuracy"]["accuracy"], found["judged_only"]["score"]) == (0.5, 3.0)
    assert found["missing"] == {"count": 1, "first": ["q3"]}
    assert found["per_type"]["number"]["score"] == 1.0
    assert found["models"] == {"judge-2026-01-01": 2}
    assert found["this_run"] == {"requests": 2, "reused": 0, "gave_up": False, "stopped": False}
    assert run(job)["judge"]["this_run"]["requests"] == 0
    assert len(server.requests) == 2
    assert json.loads(json.dumps(report)) == report


def test_every_question_has_its_line_beside_the_raw_replies(server: JudgeServer, place: tuple[str, dict[str, Any]]) -> None:
    """judged.jsonl keeps the order of the questions, on local disk and on S3."""
    url, options = place
    report = run(_on_storage(server, url, options))
    with fsspec.open(f"{url}/judged.jsonl", "rt", **options) as file:
        rows = [json.loads(line) for line in file]
    assert [(row["question_id"], row["status"], row["correct"], row["score"]) for row in rows] == [
        ("q1", "ok", True, 5),
        ("q2", "ok", False, 1),
        ("q3", "missing", False, 0),
    ]
    assert rows[0]["reply"] == '{"pred": "yes", "score": 5}'
    assert report["judge"]["judgements"].endswith("judged.jsonl")


def _on_storage(server: JudgeServer, url: str, options: dict[str, Any]) -> EvaluateJob:
    """Put the files beside the judge's folder: one set of storage options serves every file."""
    for name, rows in (("p.json", SAID), ("questions.json", QUESTIONS)):
        with fsspec.open(f"{url}-in/{name}", "wt", **options) as file:
            json.dump(rows, file)
    return EvaluateJob(
        predictions=f"{url}-in/p.json",
        questions=f"{url}-in/questions.json",
        judge_url=server.url,
        judge_model="some-judge",
        judge_out=url,
        storage_options=json.dumps(options),
    )


def test_what_is_not_judged_is_counted_and_in_no_score(server: JudgeServer, tmp_path: Path) -> None:
    """An unparsed and a failed question leave the accuracy alone, stand in the report by id, and the run ends with 1."""
    said = [*SAID, {"question_id": "q3", "answer": "cat"}]
    server.faults = {"three": [does.says("no idea")], "cat": [does.body(b"", 400)]}
    job = EvaluateJob(
        predictions=written(tmp_path / "p.json", said),
        questions=written(tmp_path / "questions.json", QUESTIONS),
        judge_url=server.url,
        judge_model="some-judge",
        judge_tries=1,
    )
    report = run(job)
    found = report["judge"]
    assert report["exit_code"] == 1
    assert (found["accuracy"]["accuracy"], found["accuracy"]["asked"], found["score"]) == (1.0, 1, 5.0)
    assert found["unparsed"] == {"count": 1, "first": ["q2"]}
    assert found["failed"] == {"count": 1, "first": ["q3"]}
    assert found["faults"] == {"HTTP 400": 1}
    assert found["if_unjudged_wrong"]["accuracy"]["accuracy"] == 1 / 3
    again = run(job)
    assert (again["exit_code"], again["judge"]["this_run"]["requests"], again["judge"]["failed"]["count"]) == (0, 1, 0)


def test_a_judge_needs_url_model_and_its_key(server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A half-named judge or a variable without a key stops the run before anything is sent."""
    files = {"predictions": written(tmp_path / "p.json", SAID), "questions": written(tmp_path / "q.json", QUESTIONS)}
    with pytest.raises(ConfigError, match="both --judge-url and --judge-model"):
        EvaluateJob(**files, judge_url=server.url)
    judge = {"judge_url": server.url, "judge_model": "m"}
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ConfigError, match="NO_SUCH_KEY, which is not set"):
        run(EvaluateJob(**files, **judge, judge_key_env="NO_SUCH_KEY"))
    with pytest.raises(ConfigError, match="--judge-request must be a JSON object"):
        run(EvaluateJob(**files, **judge, judge_request="[]"))
    assert server.requests == []


@pytest.mark.parametrize("status", [200, 401, 403])
def test_the_key_is_never_printed(
    server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], status: int
) -> None:
    """Neither in the report nor in an error, even where the server repeats it, or a part of it."""
    monkeypatch.setenv("MY_JUDGE_KEY", "secret-key-123")
    server.always = does.body(does.completion("{'pred': 'yes', 'score': 5} secret-key-123 or secret-k****123"), status)
    files = [written(tmp_path / "p.json", SAID), "--questions", written(tmp_path / "q.json", QUESTIONS)]
    flags = ["--judge-url", server.url, "--judge-model", "m", "--judge-key-env", "MY_JUDGE_KEY"]
    code = main([*files, *flags])
    said = capfd.readouterr()
    assert code == (0 if status == 200 else 2)
    assert server.headers[0]["Authorization"] == "Bearer secret-key-123"
    assert "secret-k" not in said.out + said.err


def test_a_judging_run_that_is_killed_loses_only_the_requests_in_flight(server: JudgeServer, tmp_path: Path) -> None:
    """kill -9 while the server holds three replies back: what came before is kept, the next run asks for the rest."""
    rows = [
        {"question_id": f"q{i}", "video_id": "a", "question": f"question {i}?", "answer": "yes", "prediction": f"said {i}"}
        for i in range(30)
    ]
    path = written(tmp_path / "q.json", rows)
    flags = [path, "--questions", path, "--judge-url", server.url, "--judge-model", "m", "--judge-concurrency", "3"]
    server.let(12)
    command = [sys.executable, "-m", "jobs.evaluate", *flags]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], env=os.environ, stderr=subprocess.DEVNULL)
    server.wait_for(15)
    process.kill()
    process.wait()
    server.let()
    report = run(EvaluateJob(predictions=path, questions=path, judge_url=server.url, judge_model="m", judge_concurrency=3))
    assert report["judge"]["judged"] == 30
    assert report["judge"]["this_run"]["reused"] == 12
    assert report["judge"]["this_run"]["requests"] == 18
    assert max(server.asked.values()) == 2
    assert sum(count == 2 for count in server.asked.values()) == 3


def test_a_judging_run_that_is_terminated_says_so_and_keeps_what_came(server: JudgeServer, tmp_path: Path) -> None:
    """SIGTERM ends with 3 once the requests in flight are answered; judged.jsonl tells what was not asked."""
    rows = [
        {"question_id": f"q{i}", "video_id": "a", "question": f"question {i}?", "answer": "yes", "prediction": f"said {i}"}
        for i in range(30)
    ]
    path = written(tmp_path / "q.json", rows)
    flags = [path, "--questions", path, "--judge-url", server.url, "--judge-model", "m", "--judge-concurrency", "3"]
    server.let(12)
    command = [sys.executable, "-m", "jobs.evaluate", *flags]
    process = subprocess.Popen(
        command, cwd=Path(__file__).parents[2], env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    server.wait_for(15)
    process.terminate()
    assert process.stderr is not None
    while "SIGTERM" not in process.stderr.readline():  # it has taken notice
        assert process.poll() is None
    server.let()
    out, _ = process.communicate(timeout=60)
    report = json.loads(out.splitlines()[-1])
    assert process.returncode == 3
    assert (report["judge"]["judged"], report["judge"]["faults"]) == (15, {"not asked": 15})
    assert report["judge"]["this_run"]["stopped"]
    judged = [json.loads(line) for line in Path(f"{path}.judge/judged.jsonl").read_text().splitlines()]
    assert [row["question_id"] for row in judged] == [row["question_id"] for row in rows]
    assert len(server.requests) == 15
