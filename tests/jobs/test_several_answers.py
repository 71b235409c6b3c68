"""A list of answers is several right answers: any of them is right, and nothing changes where each question has one."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.commands.evaluate import EvaluateJob, run
from pipeline.evaluate import metrics
from pipeline.evaluate.judge_scores import reference_text
from pipeline.questions.datasets import read_questions
from tests.judge_server import JudgeServer

ASKED = [
    {"question_id": "1", "video_id": "a", "question": "colour?", "answer": ["red", "dark red", "red", None]},
    {"question_id": "2", "video_id": "a", "question": "how many?", "answer": [3.0, "three"]},
    {"question_id": "3", "video_id": "b", "question": "moves?", "answer": "yes"},
    {"question_id": "4", "video_id": "b", "question": "who?", "answer": ["a man"]},
    {"question_id": "5", "video_id": "b", "question": "why?", "answer": []},
]


def scored(folder: Path, asked: list[dict[str, Any]], said: dict[str, Any], **settings: Any) -> dict[str, Any]:
    (folder / "q.json").write_text(json.dumps(asked))
    (folder / "p.json").write_text(json.dumps(said))
    return run(EvaluateJob(predictions=str(folder / "p.json"), questions=str(folder / "q.json"), **settings))


def test_any_of_several_answers_is_right_and_a_question_counts_once(tmp_path: Path) -> None:
    report = scored(tmp_path, ASKED, {"1": "dark red", "2": "Three.", "3": "no", "4": "a man"})
    assert (report["questions"], report["without_reference"]) == (4, 1)
    assert (report["exact"]["correct"], report["exact"]["asked"]) == (2, 4)
    assert report["normalised"]["correct"] == 3
    assert report["several_answers"]["questions"] == 2
    assert report["several_answers"]["exact_first_only"]["correct"] == 1


def test_the_official_arithmetic_takes_any_right_answer(tmp_path: Path) -> None:
    asked = [{**row, "type": kind} for row, kind in zip(ASKED[:4], (4, 7, 3, 8), strict=True)]
    report = scored(tmp_path, asked, {"1": "dark red", "2": "3", "3": "yes", "4": "x"}, dataset="activitynet-qa")
    official = report["official"]
    assert (official["color"], official["number"], official["yes/no"], official["other"]) == (1, 1, 1, 0)
    assert (official["free"], official["all"]) == (0.75, 0.75)


def test_a_judge_sees_all_right_answers(server: JudgeServer, tmp_path: Path) -> None:
    """It grades each prediction once, and the row of a question keeps its answers."""
    report = scored(tmp_path, ASKED[:3], {"1": "red or dark red", "3": "yes"}, judge_url=server.url, judge_model="some-judge")
    assert report["judge"]["judged"] == 2
    assert report["judge"]["accuracy"]["correct"] == 2
    rows = [json.loads(line) for line in Path(report["judge"]["judgements"]).read_text().splitlines()]
    assert [row["answers"] for row in rows] == [["red", "dark red"], ["3", "three"], None]


def test_a_list_of_one_scores_as_the_answer_alone(tmp_path: Path) -> None:
    """The reports are equal, and none speaks of several answers."""
    said = {"1": "red", "2": "4", "3": "yes"}
    single = [{**row, "answer": answer} for row, answer in zip(ASKED[:3], ("red", "3", "yes"), strict=True)]
    lists = [{**row, "answer": [row["answer"]]} for row in single]
    report = scored(tmp_path, single, said)
    assert scored(tmp_path, lists, said) == report
    assert "several_answers" not in report
    assert read_questions(str(tmp_path / "q.json")).column_names[-1] == "turn"


@given(st.lists(st.tuples(st.none() | st.text(max_size=3), st.lists(st.text(max_size=3), min_size=1, max_size=4)), min_size=1))
def test_several_answers_match_where_one_of_them_does(cases: list[tuple[str | None, list[str]]]) -> None:
    for match in (metrics.exact_matches, metrics.normalised_matches):
        wanted = [any(match([said], [one])[0] for one in several) for said, several in cases]
        assert match([said for said, _ in cases], [several for _, several in cases]).tolist() == wanted


@pytest.mark.parametrize("kind", [pa.list_, pa.large_list, lambda item: pa.list_(item, 2)], ids=["list", "large_list", "fixed"])
@pytest.mark.parametrize("item", [pa.string(), pa.large_string(), pa.binary(), pa.string_view()], ids=str)
def test_a_list_of_answers_is_read_from_every_list_type_of_parquet(tmp_path: Path, kind: Any, item: pa.DataType) -> None:
    answers = pa.array([["red", "blue"], None]).cast(kind(pa.string())).cast(kind(item))
    pq.write_table(pa.table({"video_id": ["a", "b"], "question": ["x", "y"], "answer": answers}), tmp_path / "q.parquet")
    table = read_questions(str(tmp_path / "q.parquet"))
    assert metrics.references(table) == [["red", "blue"], None]


def test_lists_of_an_answer_file_are_several_answers_too(tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text(json.dumps([{"video_id": "a", "question": "x", "question_id": 1}]))
    (tmp_path / "a.json").write_text(json.dumps({"1": ["red", "blue"]}))
    table = read_questions(str(tmp_path / "q.json"), answers=str(tmp_path / "a.json"))
    assert metrics.references(table) == [["red", "blue"]]
    assert reference_text(metrics.references(table)[0]) == "red or blue"
    (tmp_path / "plural.json").write_text(json.dumps([{"video_id": "a", "question": "x", "answers": ["red", "blue"]}]))
    assert metrics.references(read_questions(str(tmp_path / "plural.json"))) == [["red", "blue"]]


@pytest.mark.parametrize(
    ("name", "asked", "answer"),
    [
        ("video7010", "what's the man's & \"x\" < y", ["black & white", "b"]),
        ("holiday", "what&#39;s the man&apos;s &amp; &quot;x&quot; &lt; y", ["black &amp; white", "b"]),
    ],
)
def test_entities_are_unescaped_in_known_data_sets_alone(tmp_path: Path, name: str, asked: str, answer: list[str]) -> None:
    row = {"question": "what&#39;s the man&apos;s &amp; &quot;x&quot; &lt; y", "answer": ["black &amp; white", "b"]}
    column = "video_name" if name == "video7010" else "video_id"
    (tmp_path / "q.json").write_text(json.dumps([{column: name, "question_id": 1, **row}]))
    table = read_questions(str(tmp_path / "q.json"))
    assert table["question"].to_pylist() == [asked]
    assert metrics.references(table) == [answer]


def test_words_that_look_like_entities_stay(tmp_path: Path) -> None:
    """`html.unescape` alone takes `&not` and `&copy` without a semicolon as well."""
    rows = [{"video_name": "video1", "question_id": 1, "question": "AT&T &notes &copyright", "answer": "&madeup;"}]
    (tmp_path / "q.json").write_text(json.dumps(rows))
    row = read_questions(str(tmp_path / "q.json")).to_pylist()[0]
    assert (row["question"], row["answer"]) == ("AT&T &notes &copyright", "&madeup;")
