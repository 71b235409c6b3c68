"""Every value of a user's table becomes text by one rule, or is refused with its row and column."""

import datetime
import json
import math
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.commands.evaluate import read_predictions
from pipeline.corpus.listing import read_corpus
from pipeline.errors import ConfigError
from pipeline.questions.aliases import read_aliases
from pipeline.questions.datasets import read_questions
from pipeline.tables.values import NotTextError, check_controls, text_of, texts

MOMENT = datetime.datetime(2024, 1, 2, 3, 4, 5)
BROKEN = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers())
"""A text that is not UTF-8, as writers that check nothing leave it."""


@given(st.integers(-(2**53) + 1, 2**53 - 1))
def test_an_integral_float_or_decimal_becomes_the_text_of_its_integer(number: int) -> None:
    assert {text_of(number), text_of(float(number)), text_of(Decimal(number)), text_of(np.float64(number))} == {str(number)}


@given(st.integers(2**53, 10**300), st.sampled_from([-1, 1]))
def test_a_float_that_merges_integers_is_refused(number: int, sign: int) -> None:
    with pytest.raises(NotTextError, match="as an integer or as text"):
        text_of(sign * float(number))
    assert text_of(sign * number) == str(sign * number)


@given(st.floats(allow_nan=False, allow_infinity=False).filter(lambda value: not value.is_integer()))
def test_another_float_becomes_a_text_that_reads_as_the_same_number(value: float) -> None:
    assert float(str(text_of(value))) == value


@given(st.text())
def test_a_text_stays_as_it_is(text: str) -> None:
    assert text_of(text) == text
    assert text_of(text.encode()) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (-0.0, "0"),
        (0.5, "0.5"),
        (Decimal("3.00"), "3"),
        (Decimal("2.50"), "2.5"),
        (Decimal("1E+3"), "1000"),
        (Decimal("1E-9"), "0.000000001"),
        (Decimal("NaN"), None),
        (math.nan, None),
        (None, None),
        (np.float32(0.1), "0.1"),
        (np.float32(2**24 - 1), "16777215"),
        (np.int64(7), "7"),
        (10**400, "1" + "0" * 400),
        (b"\xc3\xa4", "ä"),
        (bytearray(b"a"), "a"),
    ],
)
def test_a_value_has_one_text(value: object, text: str | None) -> None:
    assert text_of(value) == text


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (True, "the boolean true"),
        (np.bool_(False), "the boolean false"),
        ([1], "a list"),
        ((), "a list"),
        ({"a": 1}, "an object"),
        (math.inf, "finite number"),
        (Decimal("-Infinity"), "finite number"),
        (np.float32(2**24), "2**24"),
        (np.float16(2048), "2**11"),
        (b"a\xff", "not UTF-8 at byte 1"),
        ("x\ud83d", "half of a surrogate pair, \\ud83d"),
        ("\udcff", "half of a surrogate pair, \\udcff"),
        (datetime.timedelta(1), "timedelta"),
    ],
)
def test_a_value_that_is_no_text_is_refused(value: object, said: str) -> None:
    with pytest.raises(NotTextError) as caught:
        text_of(value)
    assert said in str(caught.value)
    assert str(caught.value).isascii()


@pytest.mark.parametrize(
    ("column", "wanted"),
    [
        (pa.array(["a", None, "b"]).dictionary_encode(), ["a", None, "b"]),
        (pa.array(["a", None], pa.large_string()), ["a", None]),
        (pa.array(["a", None], pa.string_view()), ["a", None]),
        (pa.array([b"a", None], pa.binary_view()), ["a", None]),
        (pa.array([b"a", None], pa.large_binary()), ["a", None]),
        (pa.array([b"ab", None], pa.binary(2)), ["ab", None]),
        (pa.array([1.0, None, math.nan, 2.5]), ["1", None, None, "2.5"]),
        (pa.array([1.0, None, 0.1], pa.float32()), ["1", None, "0.1"]),
        (pa.array([3, None], pa.uint8()), ["3", None]),
        (pa.array([2**64 - 1, 1], pa.uint64()), [str(2**64 - 1), "1"]),
        (pa.array([Decimal("3.00"), Decimal("2.50"), None]), ["3", "2.5", None]),
        (pa.array([MOMENT, None], pa.timestamp("us")), ["2024-01-02T03:04:05", None]),
        (pa.array([MOMENT.replace(microsecond=120000)], pa.timestamp("ns", "UTC")), ["2024-01-02T03:04:05.12Z"]),
        (pa.array([datetime.date(2024, 1, 20)]), ["2024-01-20"]),
        (pa.array([datetime.time(10, 20)], pa.time64("us")), ["10:20:00"]),
        (pa.array([uuid.UUID(int=7).bytes], pa.uuid()), [str(uuid.UUID(int=7))]),
        (pa.nulls(2), [None, None]),
        (pa.array([7.0, 8.0]).dictionary_encode(), ["7", "8"]),
        (pa.array([datetime.date(2024, 1, 20), None]).dictionary_encode(), ["2024-01-20", None]),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_an_arrow_type_is_read_as_what_it_means(tmp_path: Path, column: pa.Array, wanted: list[str | None]) -> None:
    table = pa.table({"video_id": [f"v{n}" for n in range(len(column))], "question": ["x"] * len(column), "answer": column})
    pq.write_table(table, tmp_path / "q.parquet")
    assert read_questions(str(tmp_path / "q.parquet"))["answer"].to_pylist() == wanted


@pytest.mark.parametrize(
    "column",
    [
        pa.array([True]),
        pa.array([True]).cast(pa.bool8()),
        pa.array([{"a": 1}]),
        pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
        pa.array([b"\xff"]),
        BROKEN,
        pa.array([1], pa.duration("ns")),
        pa.array([10**18], pa.timestamp("us")),
        pa.array([float(2**53)]),
        pa.array([float(2**24)], pa.float32()),
        pa.array([math.inf]),
    ],
    ids=lambda column: str(column.type),
)
@pytest.mark.parametrize("where", ["question", "question_id", "video_id", "answer", "type", "turn"])
def test_an_arrow_value_that_is_no_text_is_refused_by_row_and_column(tmp_path: Path, column: pa.Array, where: str) -> None:
    path = tmp_path / "q.parquet"
    pq.write_table(pa.table({"video_id": ["v"], "question": ["x"]} | {where: column}), path)
    with pytest.raises(ConfigError) as caught:
        read_questions(str(path))
    assert f"{path}: row 1, column {where}: got " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [True, [1], {"a": 1}, "x\ud800", 2.0**53, math.inf], ids=str)
@pytest.mark.parametrize(
    ("name", "column", "row"),
    [
        ("manifest", "video_id", {"video_id": "a", "uri": "/a.mp4"}),
        ("manifest", "uri", {"video_id": "a", "uri": "/a.mp4"}),
        ("aliases", "name", {"name": "n", "video_id": "v"}),
        ("aliases", "video_id", {"name": "n", "video_id": "v"}),
        ("predictions", "question_id", {"question_id": "q", "prediction": "p"}),
        ("predictions", "prediction", {"question_id": "q", "prediction": "p"}),
        ("predictions", "status", {"question_id": "q", "prediction": "p", "status": "ok"}),
        ("questions", "question", {"video_id": "v", "question": "q"}),
        ("questions", "question_id", {"video_id": "v", "question": "q", "question_id": "1"}),
        ("answers", "question_id", {"question_id": "0", "answer": "x"}),
        ("answers", "type", {"question_id": "0", "answer": "x", "type": 1}),
    ],
)
def test_every_reader_refuses_what_is_no_text_by_row_and_column(
    tmp_path: Path, bad: Any, name: str, column: str, row: dict[str, Any]
) -> None:
    path, asked = tmp_path / f"{name}.jsonl", tmp_path / "asked.json"
    path.write_text("".join(json.dumps(one) + "\n" for one in (numbered(row), {**row, column: bad})))
    asked.write_text(json.dumps([{"video_id": "v", "question": "x", "question_id": "0"}]))
    readers = {
        "manifest": read_corpus,
        "aliases": read_aliases,
        "predictions": read_predictions,
        "questions": read_questions,
        "answers": lambda given: read_questions(str(asked), answers=given),
    }
    with pytest.raises(ConfigError) as caught:
        readers[name](str(path))
    assert f"{path}: row 2, column {column}: got " in str(caught.value)
    assert str(caught.value).isprintable()


def numbered(row: dict[str, Any]) -> dict[str, Any]:
    """The same row with other names, so that nothing is doubled."""
    return {column: f"{value}-1" if column != "type" else value for column, value in row.items()}


@pytest.mark.parametrize("mark", ["\0", "\x08", "\x1b", "\x1f", "\x7f"])
@pytest.mark.parametrize("column", ["question", "video_id", "question_id", "answer"])
def test_a_control_character_in_a_question_file_is_refused(tmp_path: Path, mark: str, column: str) -> None:
    row = {"video_id": "v", "question": "x", "question_id": "1", "answer": "y"}
    (tmp_path / "q.json").write_text(json.dumps([row, {**row, "question_id": "2", column: f"a{mark}b"}]))
    with pytest.raises(ConfigError, match=rf"row 2, column {column}: got the control character U\+{ord(mark):04X}"):
        read_questions(str(tmp_path / "q.json"))


def test_white_space_of_any_kind_stays_in_a_question(tmp_path: Path) -> None:
    text = "a\tb\nc\rd\x0be\x0cf\u2028g\u00a0h\u0085"
    (tmp_path / "q.json").write_text(json.dumps([{"video_id": "v", "question": text}]))
    assert read_questions(str(tmp_path / "q.json"))["question"].to_pylist() == [text]
    check_controls([text, None], "question", "q.json")


def test_a_prediction_keeps_what_a_model_said(tmp_path: Path) -> None:
    """A control character in it is wrong, not a fault of the file."""
    (tmp_path / "p.json").write_text(json.dumps([{"question_id": 1.0, "prediction": "a\x1b"}]))
    assert read_predictions(str(tmp_path / "p.json")).texts == {"1": "a\x1b"}


def test_ids_that_became_floats_meet_those_that_did_not(tmp_path: Path) -> None:
    """pandas makes floats of integers where a row has none; 1, 1.0 and "1" are one id."""
    asked = {"question_id": [1.0, None, 3.0], "video_id": [7.0, 8.0, 9.0], "question": ["a", "b", "c"]}
    pq.write_table(pa.table(asked), tmp_path / "q.parquet")
    (tmp_path / "a.csv").write_text("question_id;answer\n1.0;x\n3.0;y\n")
    table = read_questions(str(tmp_path / "q.parquet"), dataset="plain", answers=str(tmp_path / "a.csv"))
    assert table["video_id"].to_pylist() == ["7", "8", "9"]
    assert table["question_id"].to_pylist()[::2] == ["1", "3"]
    assert table["answer"].to_pylist() == ["x", None, "y"]


@pytest.mark.parametrize(("first", "second"), [(1, "1"), (1.0, "1"), (1, 1.0), ("a", " a ")])
def test_one_id_in_two_spellings_is_doubled(tmp_path: Path, first: object, second: object) -> None:
    rows = [{"video_id": "v", "question": "x", "question_id": one} for one in (first, "other", second)]
    (tmp_path / "q.json").write_text(json.dumps(rows))
    with pytest.raises(ConfigError, match=r"1 question ids are used more than once, such as '.' in rows 1 and 3"):
        read_questions(str(tmp_path / "q.json"))


@pytest.mark.parametrize(
    "missing", [{}, {"question_id": None}, {"question_id": ""}, {"question_id": " "}, {"question_id": math.nan}]
)
def test_a_row_without_an_id_gets_one_that_no_other_has(tmp_path: Path, missing: dict[str, Any]) -> None:
    """Also where another row has by chance the id that would be made."""
    asked = {"video_id": "v", "question": "x"}
    (tmp_path / "alone.json").write_text(json.dumps([asked]))
    made = read_questions(str(tmp_path / "alone.json"))["question_id"][0].as_py()
    rows = [{**asked, **missing}, {**asked, **missing}, {**asked, "question_id": made}, {**asked, "question_id": f"{made}:3"}]
    (tmp_path / "q.json").write_text(json.dumps(rows))
    ids = read_questions(str(tmp_path / "q.json"))["question_id"].to_pylist()
    assert ids[2:] == [made, f"{made}:3"]
    assert len(set(ids)) == 4


def test_a_column_of_texts_is_refused_at_the_row_with_half_a_pair() -> None:
    """The fast way over clean columns sees it as well."""
    with pytest.raises(ConfigError, match=r"f: row 3, column c: got half of a surrogate pair"):
        texts([{"c": "a"}, {}, {"c": "\ud800"}], "c", "f")
