"""A table that cannot be read is refused in one sentence that names its line and says what to do."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.questions.datasets import read_questions
from tests.pipeline.test_records import refused

ROW = {"video_id": "v", "question": "what"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("video_id,question,answer\nv1,what,red\nv2,who\n", "line 3: expected 3 fields, got 2: row 2 has no answer"),
        ("video_id;question;answer\nv1\n", "line 2: expected 3 fields, got 1: row 1 has no question, answer"),
        ("video_id,question\n\nv1,what\nv2,who, then\n", "line 4: expected 2 fields, got more, 3"),
        ('video_id,question\nv1,"two\nlines"\nv2,a,b\n', "line 4: expected 2 fields, got more, 3"),
        ('video_id,question\nv1,what\nv2,"who\nv3,x\n', "line 3: a quote is opened here and never closed"),
        ('video_id,question\nv1,what\nv2,"who\nv3,"x"\n', "line 3: a closing quote is followed by other text"),
        ('video_id,question\nv1,"say \\"hi\\""\n', "line 2: a closing quote is followed by other text"),
        ("sep=;\nvideo_id;question\nv1;a;b\n", "line 3: expected 2 fields, got more, 3"),
        ("video_id,question,question\nv1,a,b\n", "column 'question' appears more than once"),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_csv_that_is_no_table_is_named_with_its_line(tmp_path: Path, content: str, said: str, end: str) -> None:
    (tmp_path / "q.csv").write_bytes(content.replace("\n", end).encode())
    assert said in refused(tmp_path / "q.csv")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("q.json", '[{"video_id": "v", "question": "a"},]', "line 1: Expecting value"),
        ("q.json", '[\n{"video_id": "v", "question": "a"},\n]', "a trailing comma in front of ']'"),
        ("q.json", '[{"video_id": "v",\n"question": "a" , }]', "a trailing comma in front of '}'"),
        ("q.jsonl", '{"video_id": "v", "question": "a",}\n', "line 1: "),
        ("q.jsonl", '{"video_id": "v", "question": "a"}\n{"video_id": "v", "question": "b"},\n', "line 2: "),
        ("q.jsonl", '{"video_id": "v", "question": "a"},\n{"video_id": "v", "question": "b"}\n', "a trailing comma behind"),
        ("q.json", '{"video_id": "v", "question": "a"},\n{"video_id": "v", "question": "b"}\n', "a trailing comma behind"),
        ("q.json", "[{'video_id': 'v'}]", "single quotes"),
        ("q.jsonl", '{"video_id": "v", "question": "a"}\n{\'video_id\': 1}\n', "line 2: "),
        ("q.json", " \n", "Expecting value"),
    ],
)
def test_a_fault_of_json_is_named_with_its_line(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    assert said in refused(tmp_path / name)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([["v", "what"]], "lists without names of columns"),
        ({"train": [ROW], "test": [ROW]}, "several lists of rows, 'train', 'test'"),
        ({"questions": [ROW], "annotations": [{"question_id": 1}]}, "several lists of rows, 'questions', 'annotations'"),
        ({"video_id": ["v", "w"], "question": ["what"]}, "columns of one length"),
        ({"columns": ["video_id", "question"], "data": [["v", "what"], ["w"]]}, "row 2 of data"),
        ({"columns": ["video_id", "question"], "data": [["v", "what", "x"]]}, "row 1 of data"),
        ({"info": 1}, "cannot tell the layout"),
        ("text", "row 1 is 'text'"),
        (7, "row 1 is '7'"),
        ([], "expected a list of one or more objects"),
        ([ROW, [ROW]], "lists without names of columns"),
    ],
)
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_json_that_holds_no_rows_is_named(tmp_path: Path, value: Any, said: str, suffix: str) -> None:
    (tmp_path / f"q.{suffix}").write_text(json.dumps(value))
    assert said in refused(tmp_path / f"q.{suffix}")


@pytest.mark.parametrize("turn", [2**31, -1, 1.5, "one"])
def test_a_turn_that_is_no_small_whole_number_is_refused(tmp_path: Path, turn: object) -> None:
    (tmp_path / "q.json").write_text(json.dumps([{**ROW, "turn": turn}]))
    with pytest.raises(ConfigError, match=r"expected turn to be a whole number .* in row 1"):
        read_questions(str(tmp_path / "q.json"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("table.json", {"schema": {"fields": [], "pandas_version": "1.4.0"}, "data": [ROW]}),
        ("tight.json", {"index": [0], "columns": list(ROW), "data": [list(ROW.values())], "index_names": [None]}),
        ("named.json", {"name": "a set", "version": 1, "questions": [ROW]}),
        ("deep.json", {"status": "ok", "data": {"questions": [ROW]}}),
        ("spelled.json", {"Data": [{"Video_ID": "v", " Question ": "what"}]}),
        ("by_video.json", {"v": {"question": "what"}}),
        ("lists_by_video.json", {"v": [{"question": "what"}]}),
        ("values.json", {"video_id": ["v"], "question": ["what"]}),
    ],
)
def test_an_object_that_wraps_rows_reads_as_the_rows(tmp_path: Path, name: str, value: Any) -> None:
    (tmp_path / name).write_text(json.dumps(value))
    (tmp_path / "rows.json").write_text(json.dumps([ROW]))
    assert read_questions(str(tmp_path / name)).equals(read_questions(str(tmp_path / "rows.json")))


def test_rows_by_id_have_the_key_as_their_id(tmp_path: Path) -> None:
    """Unless a row has one itself."""
    rows = {"q1": ROW, "q2": {**ROW, "question_id": "own"}, "3": ROW}
    (tmp_path / "q.json").write_text(json.dumps(rows))
    assert read_questions(str(tmp_path / "q.json"))["question_id"].to_pylist() == ["q1", "own", "3"]


def test_lists_on_the_lines_of_a_file_are_one_list(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps([ROW, ROW]) + "\n" + json.dumps([ROW]) + "\n")
    assert read_questions(str(tmp_path / "q.jsonl")).num_rows == 3


def test_files_that_were_joined_keep_their_marks_to_themselves(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text("".join(f"\ufeff{json.dumps(ROW)}\n" for _ in range(2)), encoding="utf-8")
    assert read_questions(str(tmp_path / "q.jsonl"))["video_id"].to_pylist() == ["v", "v"]
