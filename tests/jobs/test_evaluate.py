"""Scoring from files to report, on a split in the layout of ActivityNet-QA."""

import json
import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.commands.evaluate import EvaluateJob, read_predictions, run
from pipeline.errors import ConfigError
from pipeline.evaluate import metrics
from tests.activitynet import made_up_split
from tests.jobs.scored import QUESTIONS, written


def test_always_answering_yes_scores_what_the_released_script_gives(tmp_path: Path, activitynet: Path) -> None:
    """31 of 400. Free has 280 questions; as published, it is divided by all but the first three types: 400 - 90 - 40 - 40."""
    yes = [{"question_id": row["question_id"], "answer": "yes"} for row in made_up_split()[0]]
    random.Random(1).shuffle(yes)
    report = run(
        EvaluateJob(
            predictions=written(tmp_path / "yes.json", yes),
            questions=str(activitynet / "test_q.json"),
            free_published=True,
        )
    )
    official = report["official"]
    assert report["exact"]["correct"] == 31
    assert official["all"] == report["exact"]["accuracy"] == 31 / 400
    assert official["yes/no"] == 30 / 90
    assert official["spatial"] == 1 / 40
    assert official["free"] == 30 / 280
    assert official["free_published"] == 30 / 230
    assert report["exact"]["low"] < 31 / 400 < report["exact"]["high"]
    assert (report["questions"], report["videos"], report["coverage"]) == (400, 40, 1.0)


def test_perfect_predictions_score_one_hundred_percent_in_any_order(tmp_path: Path) -> None:
    """Predictions, questions and answers shuffled apart from each other still meet by id."""
    questions, answers = made_up_split()
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


def test_shuffled_files_give_the_same_report(tmp_path: Path, activitynet: Path) -> None:
    """Only the published Free reads an order, and only when asked for; everything else is equal to the last digit."""
    (questions, answers), draw = made_up_split(), random.Random(5)
    said = [{"question_id": q["question_id"], "answer": draw.choice(["yes", "no", "2", "Red."])} for q in questions[:350]]
    predictions = written(tmp_path / "predictions.json", said)
    straight = run(EvaluateJob(predictions=predictions, questions=str(activitynet / "test_q.json")))
    draw.shuffle(said)
    draw.shuffle(answers)
    turned = run(
        EvaluateJob(
            predictions=written(tmp_path / "predictions.json", said),
            questions=str(activitynet / "test_q.json"),
            answers=written(tmp_path / "answers.json", answers),
        )
    )
    assert turned == straight
    assert straight["missing"]["count"] == 50
    assert straight["coverage"] == 350 / 400
    assert straight["exact"]["answered_only"] == straight["exact"]["correct"] / 350


SPLIT = [("motion", "run"), ("spatial", "left"), ("temporal", "eat"), ("yes/no", "yes"), ("color", "red"), ("number", "2")]


def split(folder: Path, said: list[str]) -> EvaluateJob:
    """A small split in ActivityNet-QA's layout, types by number, with a prediction for each question."""
    names = ["motion", "spatial", "temporal", "yes/no", "color", "object", "location", "number", "other"]
    ids = [f"v_{at}" for at in range(len(SPLIT))]
    asked = [{"video_name": f"abcdefghij{at // 2}", "question": f"q {at}", "question_id": name} for at, name in enumerate(ids)]
    right = [{"question_id": name, "answer": a, "type": names.index(t)} for name, (t, a) in zip(ids, SPLIT, strict=True)]
    written(folder / "some_a.json", right)
    predictions = [{"question_id": name, "answer": text} for name, text in zip(ids, said, strict=True)]
    return EvaluateJob(predictions=written(folder / "p.json", predictions), questions=written(folder / "some_q.json", asked))


def test_the_lines_of_activitynet_are_those_of_exact_matches(tmp_path: Path) -> None:
    """A small split: what only normalising makes right is wrong there; nine types, free and all, and nothing besides."""
    job = split(tmp_path, ["run", "Left", "sit", "yes", "blue", "two"])
    report = run(job)
    official = report["official"]
    assert report["dataset"] == "activitynet-qa"
    assert (official["motion"], official["spatial"], official["temporal"]) == (1.0, 0.0, 0.0)
    assert (official["yes/no"], official["color"], official["number"], official["other"]) == (1.0, 0.0, 0.0, None)
    assert (official["free"], official["all"]) == (1 / 3, 2 / 6)
    assert len(official) == 11
    assert (report["exact"]["correct"], report["normalised"]["correct"]) == (2, 4)
    spatial, number = report["per_type"]["spatial"], report["per_type"]["number"]
    assert [one["accuracy"] for one in (*spatial.values(), *number.values())] == [0.0, 1.0, 0.0, 1.0]
    assert (report["questions"], report["videos"]) == (6, 3)


def test_the_published_free_is_told_where_it_is_asked_for(tmp_path: Path) -> None:
    """By exact matches as well, over the questions of the types behind the first three to appear."""
    job = split(tmp_path, ["run", "left", "eat", "yes", "Red", "3"])
    assert run(replace(job, free_published=True))["official"]["free_published"] == 1 / 3
    assert "free_published" not in run(job)["official"]


def test_other_data_sets_have_no_lines_of_their_own(tmp_path: Path) -> None:
    """The eleven lines are ActivityNet-QA's."""
    job = split(tmp_path, ["run", "left", "eat", "yes", "red", "2"])
    assert "official" not in run(replace(job, dataset="plain"))


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


def test_a_text_beside_a_status_that_is_not_ok_is_no_prediction(tmp_path: Path) -> None:
    """Whatever was left in the column; a row without a status is one that was answered."""
    rows = [
        {"question_id": "q1", "prediction": "yes", "status": "too_long"},
        {"question_id": "q2", "prediction": "2", "status": None},
    ]
    found = read_predictions(written(tmp_path / "p.json", rows))
    assert (found.texts, found.statuses) == ({"q1": None, "q2": "2"}, {"too_long": 1})


def test_a_question_id_is_taken_before_an_id(tmp_path: Path) -> None:
    """Some files number their rows besides."""
    rows = [{"id": "7", "question_id": "q1", "answer": "yes"}]
    assert read_predictions(written(tmp_path / "p.json", rows)).texts == {"q1": "yes"}


def test_an_empty_prediction_is_one(tmp_path: Path) -> None:
    """It was asked and answered with nothing: wrong, and not missing."""
    rows = [{"question_id": "q1", "answer": ""}, {"question_id": "q3", "answer": "dog"}]
    report = run(
        EvaluateJob(predictions=written(tmp_path / "p.json", rows), questions=written(tmp_path / "questions.json", QUESTIONS))
    )
    assert (report["answered"], report["missing"]["first"], report["exact"]["answered_only"]) == (2, ["q2"], 0.5)


def test_at_most_ten_ids_of_a_kind_are_named(tmp_path: Path) -> None:
    """All are counted."""
    rows = [{"video_id": "a", "question": f"q {at}", "question_id": f"{at:02}", "answer": "x"} for at in range(13)]
    said = [{"question_id": "00", "answer": "x"}, *({"question_id": f"other {at:02}", "answer": "x"} for at in range(12))]
    report = run(EvaluateJob(predictions=written(tmp_path / "p.json", said), questions=written(tmp_path / "q.json", rows)))
    assert report["missing"] == {"count": 12, "first": [f"{at:02}" for at in range(1, 11)]}
    assert report["unknown_ids"] == {"count": 12, "first": [f"other {at:02}" for at in range(10)]}


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
        ([{"question_id": None, "answer": "yes"}], "row 1 has no question_id"),
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
    clustered = metrics.paired_difference(np.array([1, 1, 0]) > 0, np.array([0, 0, 1]) > 0, np.array([0, 0, 1]))
    assert clustered is not None
    assert normalised == asdict(clustered)


def test_a_decision_about_duplicates_holds_for_both_runs(tmp_path: Path) -> None:
    """And without one, the second file is refused as the first is."""
    twice = [{"question_id": "q1", "answer": "yes"}, {"question_id": "q1", "answer": "no"}]
    job = EvaluateJob(
        predictions=written(tmp_path / "ours.json", twice[:1]),
        questions=written(tmp_path / "questions.json", QUESTIONS),
        against=written(tmp_path / "theirs.json", twice),
    )
    with pytest.raises(ConfigError, match="question 'q1' has two different predictions"):
        run(job)
    assert run(replace(job, duplicates="first"))["against"]["exact"]["better"] == 0
    assert run(replace(job, duplicates="last"))["against"]["exact"]["better"] == 1
