"""The same logical table reads to the same questions, whatever program wrote it."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.commands.evaluate import read_predictions
from pipeline.corpus.listing import read_corpus
from pipeline.questions.aliases import read_aliases
from pipeline.questions.datasets import read_questions
from tests.pipeline.table_files import WRITERS, Rows, written

WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='"'), min_size=1, max_size=12)
TEXTS = WORDS.filter(lambda text: text == text.strip() and text.strip("\ufeff"))
NUMBERS = st.integers(-(2**53) + 1, 2**53 - 1)
SETTINGS = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def tables(draw: st.DrawFn) -> Rows:
    """Ids are all texts, all integers, or integers with holes, which pandas holds as floats."""
    count = draw(st.integers(1, 6))
    ids = draw(st.one_of(st.lists(TEXTS, min_size=count, max_size=count, unique=True), numbers(count), holes(count)))
    videos = draw(st.one_of(st.lists(TEXTS, min_size=count, max_size=count), numbers(count, unique=False)))
    asked = draw(st.lists(TEXTS, min_size=count, max_size=count))
    right = draw(st.lists(st.one_of(st.none(), TEXTS), min_size=count, max_size=count))
    columns = {"question_id": ids, "video_id": videos, "question": asked, "answer": right}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def numbers(count: int, *, unique: bool = True) -> st.SearchStrategy[list[int]]:
    return st.lists(NUMBERS, min_size=count, max_size=count, unique=unique)


def holes(count: int) -> st.SearchStrategy[list[int | None]]:
    """Integers that floats hold with all their digits in every notation, some of them missing."""
    known = st.lists(st.integers(0, 10**6), min_size=count, max_size=count, unique=True)
    return st.tuples(known, st.lists(st.booleans(), min_size=count, max_size=count)).map(
        lambda both: [number if keep else None for number, keep in zip(*both, strict=True)]
    )


@pytest.mark.parametrize("name", sorted(WRITERS))
@SETTINGS
@given(rows=tables())
def test_a_table_in_any_format_reads_to_the_same_questions(tmp_path: Path, name: str, rows: Rows) -> None:
    found = read_questions(written(tmp_path, name, rows)).to_pylist()
    assert [row["video_id"] for row in found] == [str(row["video_id"]) for row in rows]
    assert [row["question"] for row in found] == [row["question"] for row in rows]
    assert [row["answer"] for row in found] == [row["answer"] for row in rows]
    own = [
        row["question_id"] if question["question_id"] is not None else None for row, question in zip(found, rows, strict=True)
    ]
    assert own == [None if row["question_id"] is None else str(row["question_id"]).strip() for row in rows]
    assert len({row["question_id"] for row in found}) == len(rows)


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_made_ids_do_not_depend_on_the_format(tmp_path: Path, name: str) -> None:
    rows = [{"video_id": f"v{n // 2}", "question": f"wäs is {n % 2}, really;", "answer": None} for n in range(6)]
    wanted = read_questions(written(tmp_path, "records.json", rows))
    assert read_questions(written(tmp_path, name, rows)).equals(wanted)


@pytest.mark.parametrize("name", sorted(WRITERS))
@SETTINGS
@given(rows=tables())
def test_predictions_and_aliases_in_any_format_read_alike(tmp_path: Path, name: str, rows: Rows) -> None:
    answered = [row for row in rows if row["question_id"] is not None and row["answer"] is not None]
    if answered:
        told = [{"question_id": row["question_id"], "prediction": row["answer"]} for row in answered]
        found = read_predictions(written(tmp_path, name, told)).texts
        assert found == {str(row["question_id"]).strip(): row["answer"] for row in answered}
    pairs = [{"name": f"n{number}", "video_id": row["video_id"]} for number, row in enumerate(rows)]
    aliases = read_aliases(written(tmp_path, name, pairs))
    assert [aliases[pair["name"]] for pair in pairs] == [str(pair["video_id"]) for pair in pairs]


@pytest.mark.parametrize("name", [name for name in sorted(WRITERS) if name.endswith((".csv", ".jsonl", ".parquet"))])
def test_a_manifest_in_any_format_lists_the_same_videos(tmp_path: Path, name: str) -> None:
    rows = [{"video_id": number, "uri": f"/videos/a {number}, b;.mp4"} for number in range(3)]
    found = read_corpus(written(tmp_path, name, rows)).to_pylist()
    assert [(row["video_id"], row["uri"]) for row in found] == [(str(row["video_id"]), row["uri"]) for row in rows]


@pytest.mark.parametrize(
    "header", ["video_id, question , answer", "video_id,question,answer", " video_id ,  question,   answer"]
)
def test_spaces_behind_commas_are_part_of_no_field(tmp_path: Path, header: str) -> None:
    (tmp_path / "q.csv").write_text(f'{header}\nv1, what is it,   red\nv2,  "who, then", " blue"\n')
    found = read_questions(str(tmp_path / "q.csv")).to_pylist()
    assert [(row["video_id"], row["question"], row["answer"]) for row in found] == [
        ("v1", "what is it", "red"),
        ("v2", "who, then", " blue"),
    ]


def test_rows_of_delimiters_alone_are_none(tmp_path: Path) -> None:
    """Spreadsheets leave them below the table."""
    (tmp_path / "m.csv").write_text("video_id,uri\na,/v/a.mp4\n\n,\n , \n")
    assert read_corpus(str(tmp_path / "m.csv"))["video_id"].to_pylist() == ["a"]


def test_a_file_with_cr_line_ends_and_one_with_pipes_are_read(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_bytes(b"video_id|question\rv1|what, or; who\rv2|x\r")
    assert read_questions(str(tmp_path / "q.csv"))["question"].to_pylist() == ["what, or; who", "x"]


def test_a_column_that_no_one_uses_may_hold_anything(tmp_path: Path) -> None:
    """Its values have no text, and one of them no Python value."""
    table = {"video_id": ["a"], "question": ["b"], "box": [[1, 2]], "at": pa.array([10**18], pa.timestamp("us"))}
    pq.write_table(pa.table({**table, "long": pa.array([1], pa.duration("ns"))}), tmp_path / "q.parquet")
    (tmp_path / "q.json").write_text(json.dumps([{"video_id": "a", "question": "b", "box": {"x": True}, "note": "\ud800"}]))
    for name in ("q.parquet", "q.json"):
        assert read_questions(str(tmp_path / name))["question"].to_pylist() == ["b"]
