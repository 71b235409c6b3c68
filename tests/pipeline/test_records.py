"""Files that users bring as they are: from spreadsheets, from pandas, with holes. Each works or is refused in one sentence."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpus.listing import read_corpus
from pipeline.errors import ConfigError
from pipeline.questions.aliases import read_aliases
from pipeline.questions.datasets import join_videos, read_questions
from pipeline.tables.tabular import read_records

ASKED = 'video_id,question\na,what is it\n"v é",who runs\n'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-mark", "utf-16-be-mark"])
def test_a_text_in_any_encoding_that_says_what_it_is_is_read(tmp_path: Path, encoding: str) -> None:
    """Excel's "Unicode text" is UTF-16 with a byte order mark."""
    name = encoding.removesuffix("-mark")
    text = ("\ufeff" if encoding.endswith("-mark") else "") + ASKED
    (tmp_path / "q.csv").write_bytes(text.encode(name))
    assert read_questions(str(tmp_path / "q.csv"))["video_id"].to_pylist() == ["a", "v é"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (ASKED.encode("utf-16-le"), "save it as UTF-8"),
        (ASKED.encode("latin-1"), "line 3 is not UTF-8"),
        (b"\xff\xfe" + ASKED.encode("utf-16-le")[:-1], "truncated data"),
    ],
)
def test_a_text_in_an_unknown_encoding_is_refused_with_its_line(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "q.csv").write_bytes(content)
    assert said in refused(tmp_path / "q.csv")


def refused(path: Path) -> str:
    """The one sentence that a question file is refused with."""
    with pytest.raises(ConfigError) as caught:
        read_questions(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("header", ["Video_ID,Question", " video_id , question ", "VIDEO_ID,QUESTION "])
def test_names_of_columns_have_any_case_and_spaces_around_them(tmp_path: Path, header: str) -> None:
    (tmp_path / "q.csv").write_text(f"{header}\na,what is it\n")
    assert read_questions(str(tmp_path / "q.csv")).select(["video_id", "question"]).to_pylist() == [
        {"video_id": "a", "question": "what is it"}
    ]


def test_manifests_and_aliases_take_such_names_as_well(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("Video_ID , URI\na,/v/a.mp4\n")
    assert read_corpus(str(tmp_path / "m.csv"))["uri"].to_pylist() == ["/v/a.mp4"]
    (tmp_path / "a.csv").write_text("Name, Video_Id\nold,new\n")
    assert read_aliases(str(tmp_path / "a.csv"))["old"] == "new"


def test_columns_that_differ_in_case_only_stay_apart(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"id": 1, "ID": 2}\n')
    assert read_records(str(tmp_path / "q.jsonl")) == [{"id": 1, "ID": 2}]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("q.csv", "video_id,question\na,what\n,who\n", "row 2 has no video_id"),
        ("q.csv", "video_id,question\na,what\n  ,who\n", "row 2 has no video_id"),
        ("q.csv", "video_id,question\na\n", "row 1 has no question"),
        ("q.jsonl", '{"video_id": "a", "question": "what"}\n{"video_id": null, "question": "who"}\n', "row 2 has no video_id"),
        ("q.json", '[{"video_id": NaN, "question": "who"}]', "row 1 has no video_id"),
        ("q.json", '[{"video_id": "a", "question": NaN}]', "row 1 has no question"),
        ("q.json", '[{"video_id": "a", "question": "who"}, 7]', "row 2 is '7'"),
        ("q.json", '[{"video_id": "a", "question": "who", "turn": "soon"}]', "'soon' in row 1"),
        ("q.json", "[" * 100_000, "as .json"),
        ("q.parquet", "PAR1", "as .parquet"),
    ],
)
def test_a_hole_in_a_file_is_named_with_its_row(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    assert said in refused(tmp_path / name)


def test_nan_of_pandas_is_no_name_of_a_video(tmp_path: Path) -> None:
    """pandas fills a column of numbers with NaN where a row has none."""
    pq.write_table(pa.table({"video_id": [1.0, float("nan")], "question": ["what", "who"]}), tmp_path / "q.parquet")
    assert "row 2 has no video_id" in refused(tmp_path / "q.parquet")


def test_an_empty_question_stays_a_row(tmp_path: Path) -> None:
    """It gets a status of its own when it is asked."""
    (tmp_path / "q.csv").write_text('video_id,question\na,""\n')
    assert read_questions(str(tmp_path / "q.csv"))["question"].to_pylist() == [""]


def test_spaces_around_a_name_hide_no_video(tmp_path: Path) -> None:
    """A video that is itself named with them comes first."""
    (tmp_path / "q.csv").write_text("video_id, question\n a ,what\n")
    asked = read_questions(str(tmp_path / "q.csv"))
    assert join_videos(asked, {"a"})["store_id"].to_pylist() == ["a"]
    assert join_videos(asked, {"a", " a "})["store_id"].to_pylist() == [" a "]


def test_a_parquet_file_that_rotted_is_refused_in_one_sentence(tmp_path: Path) -> None:
    table = pa.table({"video_id": ["a" * 40] * 50, "question": [f"question {number}" for number in range(50)]})
    pq.write_table(table, tmp_path / "q.parquet", write_page_checksum=True, compression="none", use_dictionary=False)
    content = bytearray((tmp_path / "q.parquet").read_bytes())
    content[content.index(b"question 7")] ^= 1
    (tmp_path / "q.parquet").write_bytes(bytes(content))
    assert "as .parquet" in refused(tmp_path / "q.parquet")
