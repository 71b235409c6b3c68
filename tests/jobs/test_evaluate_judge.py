"""Scoring with a judge beside the offline scores, over real HTTP, with kills and a key."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest

from jobs.commands.evaluate import EvaluateJob, main, run
from pipeline.errors import ConfigError
from pipeline.evaluate.judge import JudgeConfig
from pipeline.evaluate.judge_client import EndpointConfig
from tests import judge_server as does
from tests.command import ROOT, environment
from tests.jobs.scored import QUESTIONS, written
from tests.judge_server import JudgeServer

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


def test_an_endpoint_that_is_given_up_is_a_failure_and_no_stop(server: JudgeServer, tmp_path: Path) -> None:
    """Nobody asked the run to stop: exit 1, and the report says why the rest was not asked."""
    server.always = does.body(b"", 500)
    rows = [
        {"question_id": f"q{i:02}", "video_id": "a", "question": f"{i}?", "answer": "yes", "prediction": f"said {i}"}
        for i in range(40)
    ]
    path = written(tmp_path / "q.json", rows)
    job = EvaluateJob(
        predictions=path, questions=path, judge_url=server.url, judge_model="m", judge_concurrency=1, judge_tries=1
    )
    report = run(job)
    assert report["exit_code"] == 1
    assert {name: report["judge"]["this_run"][name] for name in ("gave_up", "stopped")} == {"gave_up": True, "stopped": False}
    assert report["judge"]["failed"] == {"count": 40, "first": [f"q{i:02}" for i in range(10)]}
    assert report["judge"]["faults"].keys() == {"HTTP 500", "not asked"}
    assert report["judge"]["accuracy"] is None


def test_every_flag_of_the_judge_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries, patience, requests at once and more fields of the request."""
    monkeypatch.setenv("KEY", "k")
    flags = {"judge_key_env": "KEY", "judge_tries": 2, "judge_timeout_s": 3.5, "judge_concurrency": 4}
    job = EvaluateJob(
        predictions="p", questions="q", judge_url="http://h/v1", judge_model="m", judge_request='{"temperature": null}', **flags
    )
    endpoint = EndpointConfig(url="http://h/v1", key="k", tries=2, timeout_s=3.5)
    assert job.judge() == JudgeConfig(model="m", endpoint=endpoint, concurrency=4, request={"temperature": None})


def test_a_judge_needs_url_model_and_its_key(server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A half-named judge or a variable without a key stops the run before anything is sent."""
    files = {"predictions": written(tmp_path / "p.json", SAID), "questions": written(tmp_path / "q.json", QUESTIONS)}
    with pytest.raises(ConfigError, match="both --judge-url and --judge-model"):
        EvaluateJob(**files, judge_url=server.url)
    judge = {"judge_url": server.url, "judge_model": "m"}
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ConfigError, match="NO_SUCH_KEY, which is not set"):
        run(EvaluateJob(**files, **judge, judge_key_env="NO_SUCH_KEY"))
    monkeypatch.setenv("BLANK_KEY", " \n")
    with pytest.raises(ConfigError, match="BLANK_KEY, which is not set or empty"):
        run(EvaluateJob(**files, **judge, judge_key_env="BLANK_KEY"))
    with pytest.raises(ConfigError, match="--judge-request must be a JSON object"):
        run(EvaluateJob(**files, **judge, judge_request="[]"))
    assert server.requests == []


@pytest.mark.parametrize("status", [200, 401, 403])
def test_the_key_is_never_printed(
    server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], status: int
) -> None:
    """Neither in the report nor in an error, even where the server repeats it, or a part of it."""
    monkeypatch.setenv("MY_JUDGE_KEY", "secret-key-123\n")  # as a shell reads it from a file
    server.always = does.body(does.completion("{'pred': 'yes', 'score': 5} secret-key-123 or secret-k****123"), status)
    files = [written(tmp_path / "p.json", SAID), "--questions", written(tmp_path / "q.json", QUESTIONS)]
    flags = ["--judge-url", server.url, "--judge-model", "m", "--judge-key-env", "MY_JUDGE_KEY"]
    code = main([*files, *flags])
    said = capfd.readouterr()
    assert code == (0 if status == 200 else 2)
    assert server.headers[0]["Authorization"] == "Bearer secret-key-123"
    assert "secret-k" not in said.out + said.err


THIRTY = [
    {"question_id": f"q{i}", "video_id": "a", "question": f"question {i}?", "answer": "yes", "prediction": f"said {i}"}
    for i in range(30)
]


def judging(server: JudgeServer, path: str, **pipes: Any) -> subprocess.Popen[Any]:
    """Score a file of questions and predictions in a process of its own, three requests at a time."""
    flags = [path, "--questions", path, "--judge-url", server.url, "--judge-model", "m", "--judge-concurrency", "3"]
    command = [sys.executable, "-m", "jobs.commands.evaluate", *flags]
    return subprocess.Popen(command, cwd=ROOT, env=environment(), **pipes)


def test_a_judging_run_that_is_killed_loses_only_the_requests_in_flight(server: JudgeServer, tmp_path: Path) -> None:
    """kill -9 while the server holds three replies back: what came before is kept, the next run asks for the rest."""
    path = written(tmp_path / "q.json", THIRTY)
    server.let(12)
    process = judging(server, path, stderr=subprocess.DEVNULL)
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
    path = written(tmp_path / "q.json", THIRTY)
    server.let(12)
    process = judging(server, path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    server.wait_for(15)
    process.terminate()
    assert process.stderr is not None
    while "SIGTERM" not in process.stderr.readline():  # it has taken notice
        assert process.poll() is None
    server.let()
    out, _ = process.communicate()
    report = json.loads(out.splitlines()[-1])
    assert process.returncode == 3
    assert (report["judge"]["judged"], report["judge"]["faults"]) == (15, {"not asked": 15})
    assert report["judge"]["this_run"]["stopped"]
    judged = [json.loads(line) for line in Path(f"{path}.judge/judged.jsonl").read_text().splitlines()]
    assert [row["question_id"] for row in judged] == [row["question_id"] for row in THIRTY]
    assert len(server.requests) == 15
