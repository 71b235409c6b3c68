"""Questions are read from every format with the same ids, and a file that cannot be used says why."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError
from pipeline.questions.datasets import dataset_of, read_questions
from tests.pipeline.question_rows import ANSWERS, QUESTIONS, written

PLAIN_ROWS = [
    {"video_id": "a/b.mp4", "question": "was ist das?"},
    {"video_id": "c", "question": "what, exactly, is it?"},
]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_plain_questions_are_read_from_every_format_with_the_same_ids(tmp_path: Path, suffix: str) -> None:
    """Without ids of their own, questions get ids from video and text, whatever the format and the order."""
    path = tmp_path / f"questions.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(PLAIN_ROWS), path)
    elif suffix == "json":
        path.write_text(json.dumps(PLAIN_ROWS))
    elif suffix == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in PLAIN_ROWS) + "\n\n")
    else:
        sep = {"csv": ",", "tsv": "\t"}[suffix]
        lines = [("video_id", "question"), *((r["video_id"], f'"{r["question"]}"') for r in PLAIN_ROWS)]
        path.write_text("\ufeff" + "\n".join(sep.join(line) for line in lines))
    reversed_path = tmp_path / "reversed.jsonl"
    reversed_path.write_text("\n".join(json.dumps(row) for row in PLAIN_ROWS[::-1]))
    table, turned = read_questions(str(path)), read_questions(str(reversed_path))
    assert dataset_of(table) == "plain"
    assert table["question"].to_pylist() == [row["question"] for row in PLAIN_ROWS]
    assert table["question_id"].to_pylist() == turned["question_id"].to_pylist()[::-1]


@pytest.mark.parametrize("name", ["q.ndjson", "Q.JSONL", "one.json"])
def test_other_spellings_of_a_format_are_read(tmp_path: Path, name: str) -> None:
    """Another suffix for lines, capitals, and a file with one object that stands in no list."""
    (tmp_path / name).write_text(json.dumps(PLAIN_ROWS[1]))
    assert read_questions(str(tmp_path / name))["question"].to_pylist() == [PLAIN_ROWS[1]["question"]]


def test_made_ids_tell_questions_of_equal_length_apart(tmp_path: Path) -> None:
    """They depend on the text, so a file with one question more has the same ids for the others."""
    rows = [{"video_id": "a", "question": text} for text in ("what is it", "who is she", "what is it")]
    ids = read_questions(written(tmp_path / "q.json", rows))["question_id"].to_pylist()
    alone = read_questions(written(tmp_path / "r.json", rows[1:2]))["question_id"].to_pylist()
    assert ids == [ids[0], *alone, f"{ids[0]}:2"]
    assert len(set(ids)) == 3


def test_the_same_question_asked_twice_gets_two_ids(tmp_path: Path) -> None:
    """Thirteen questions of ActivityNet-QA are asked twice of one video; a made id must not collide."""
    ids = read_questions(written(tmp_path / "q.json", [PLAIN_ROWS[0]] * 3))["question_id"].to_pylist()
    assert len(set(ids)) == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("q.json", "[]", "one or more"),
        ("q.json", "[1, 2]", "one or more"),
        ("q.json", "{broken", "cannot read"),
        ("q.jsonl", '{"video_id": "a", "question": "b"}\n{"vid', "cannot read"),
        ("q.txt", "what?", "expected .json"),
        ("q.parquet", "not parquet", "cannot read"),
        ("q.csv", "clip,text\na,b", "cannot tell the layout"),
        ("q.json", '[{"video_id": "a", "question": null}]', "row 1 has no question"),
        ("q.json", b"\xff\xfe".decode("latin1"), "cannot read"),
    ],
)
def test_a_file_that_cannot_be_used_is_the_operators_to_mend(tmp_path: Path, name: str, content: str, message: str) -> None:
    """Broken, empty and foreign files end in ConfigError, with the path."""
    path = tmp_path / name
    path.write_text(content, encoding="latin1")
    with pytest.raises(ConfigError, match=message) as caught:
        read_questions(str(path))
    assert name in str(caught.value)


def test_only_a_line_feed_ends_a_line_of_jsonl(tmp_path: Path) -> None:
    """Our own answers.jsonl holds what a model said as it is, U+2028 and U+0085 among it."""
    text = "what\u2028is\u0085this\x0c"
    path = tmp_path / "q.jsonl"
    path.write_bytes((json.dumps({"video_id": "a", "question": text}, ensure_ascii=False) + "\r\n").encode())
    assert read_questions(str(path))["question"].to_pylist() == [text]


def test_a_bad_line_of_jsonl_is_named_by_its_number(tmp_path: Path) -> None:
    """The position that the parser tells is within the line."""
    path = tmp_path / "q.jsonl"
    path.write_text('{"video_id": "a", "question": "b"}\n\n{"video_id": "a",\n')
    with pytest.raises(ConfigError, match="line 3: "):
        read_questions(str(path))


def test_a_row_with_more_fields_than_the_header_is_refused_not_cut(tmp_path: Path) -> None:
    """A comma in a question without quotes would cut the question."""
    path = tmp_path / "q.csv"
    path.write_text("video_id,question\na,why\nb,what, really?\n")
    with pytest.raises(ConfigError, match="line 3: expected 2 fields, got more"):
        read_questions(str(path))


def test_a_long_field_of_a_csv_is_read(tmp_path: Path) -> None:
    """Python's own limit is 131,072 characters, which a question with a transcript in it may pass."""
    path = tmp_path / "q.csv"
    path.write_text("video_id,question\na," + "x" * 200_000 + "\n")
    assert len(read_questions(str(path))["question"][0].as_py()) == 200_000


def test_a_missing_file_and_an_unknown_data_set_say_so(tmp_path: Path) -> None:
    """Both messages name what was given."""
    with pytest.raises(ConfigError, match="no such file"):
        read_questions(str(tmp_path / "none.json"))
    with pytest.raises(ConfigError, match="expected auto or one of"):
        read_questions(str(tmp_path / "none.json"), dataset="kinetics")


def test_files_are_read_from_any_fsspec_url(tmp_path: Path) -> None:
    """The sibling answer file is found there as well."""
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.pipe_file("/qa/test_q.json", json.dumps(QUESTIONS).encode())
    fs.pipe_file("/qa/test_a.json", json.dumps(ANSWERS).encode())
    assert read_questions("memory://qa/test_q.json")["answer"].to_pylist() == ["no", "tree", "2"]
