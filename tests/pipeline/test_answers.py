"""Answers are committed once, resumed exactly and merged the same way whatever happened on the way."""

import hashlib
import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.answer.answer_store import ANSWERS, QUESTIONS_ASKED, AnswerStore, CommitAnswers, merge, units
from pipeline.errors import ConfigError
from pipeline.storage.parquet_io import to_parquet

SPEC = {"kind": "answer", "encode": "e1", "prompt": {"style": "docs"}}


def asked(count: int = 6, payload: str | None = "p") -> pa.Table:
    """Questions of three videos in turn, so that those of one video are not adjacent."""
    rows = [
        {
            "question_id": f"q{n}",
            "video_id": f"clip{n % 3}",
            "question": f"what is {n}?",
            "store_id": None if payload is None else f"v_clip{n % 3}",
            "payload_sha256": payload and f"{payload}{n % 3}",
        }
        for n in range(count)
    ]
    return pa.Table.from_pylist(rows, schema=QUESTIONS_ASKED)


def answered(questions: pa.Table, **changes: Any) -> pa.Table:
    rows = [
        {"prediction": f"it is {row['question_id']}", "status": "ok", "visual_tokens": 4, "answer_tokens": 3, **row}
        for row in questions.to_pylist()
    ]
    return pa.Table.from_pylist([{**row, **changes} for row in rows], schema=ANSWERS)


@pytest.fixture
def store(tmp_path: Path) -> AnswerStore:
    return AnswerStore.create(str(tmp_path / "out"), SPEC)


def test_what_is_committed_is_not_asked_again(store: AnswerStore) -> None:
    """Half the units done, then a crash: the next run is given the other half, in the order of the file."""
    questions = asked()
    store.commit(answered(questions.slice(0, 2)))
    left = store.pending(questions)
    assert left["question_id"].to_pylist() == ["q2", "q3", "q4", "q5"]
    assert left.schema.names == QUESTIONS_ASKED.names
    store.commit(answered(left))
    assert store.pending(questions).num_rows == 0


def test_a_changed_question_or_video_is_asked_again(store: AnswerStore) -> None:
    """The same id with another text, or about tokens that were encoded again, has no answer yet."""
    questions = asked()
    store.commit(answered(questions))
    rows = questions.to_pylist()
    rows[1]["question"] = "what else?"
    rows[4]["payload_sha256"] = "encoded again"
    changed = pa.Table.from_pylist(rows, schema=QUESTIONS_ASKED)
    assert store.pending(changed)["question_id"].to_pylist() == ["q1", "q4"]
    assert store.finish(changed) == {"ok": 4, "pending": 2}


@pytest.mark.parametrize("status", ["missing_video", "out_of_memory"])
def test_what_may_go_better_next_time_is_asked_again(store: AnswerStore, status: str) -> None:
    """Such rows are committed and counted, and a later answer takes their place."""
    questions = asked()
    store.commit(answered(questions, status=status, prediction=None))
    assert store.finish(questions) == {status: 6}
    assert store.pending(questions).num_rows == 6
    store.commit(answered(questions))
    assert store.pending(questions).num_rows == 0
    assert store.finish(questions) == {"ok": 6}


@pytest.mark.parametrize("status", ["too_long", "empty_question", "reserved_token"])
def test_what_asking_again_cannot_change_is_final(store: AnswerStore, status: str) -> None:
    """A question that is too long today is too long tomorrow."""
    questions = asked()
    store.commit(answered(questions, status=status, prediction=None))
    assert store.pending(questions).num_rows == 0


def test_two_runs_that_commit_the_same_unit_leave_one(store: AnswerStore, tmp_path: Path) -> None:
    """Eight writers at once: one commits, seven find it there."""
    rows = answered(asked())
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda _: store.commit(rows)["status"], range(8)))
    assert sorted(outcomes) == ["committed"] + ["duplicate"] * 7
    assert len(list((tmp_path / "out" / "answers" / store.fingerprint).iterdir())) == 1


def test_overlapping_runs_with_other_units_answer_each_question_once(store: AnswerStore) -> None:
    """Units cut differently overlap; the merged file holds every question once all the same."""
    questions = asked()
    store.commit(answered(questions.slice(0, 4)))
    store.commit(answered(questions.slice(2, 4)))
    assert store.finish(questions) == {"ok": 6}


def test_merged_files_are_in_the_order_of_the_questions_and_always_the_same(store: AnswerStore, tmp_path: Path) -> None:
    """Bytes do not depend on which unit was committed first, and JSONL and Parquet say the same."""
    questions = asked(9)
    shuffled = questions.take(random.Random(2).sample(range(9), 9))
    other = AnswerStore.create(str(tmp_path / "other"), SPEC)
    for at in (0, 3, 6):
        store.commit(answered(questions.slice(at, 3)))
        other.commit(answered(shuffled.slice(6 - at, 3)))
    assert store.finish(questions) == other.finish(questions) == {"ok": 9}
    for name in ("answers.jsonl", "answers.parquet"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert [line["question_id"] for line in lines] == questions["question_id"].to_pylist()
    assert lines == pq.read_table(tmp_path / "out" / "answers.parquet").to_pylist()


def test_answers_that_differ_are_chosen_by_a_fixed_rule() -> None:
    """Half-precision runs may disagree; which answer is taken does not depend on the order of the files."""
    questions = asked(1)
    one, two = answered(questions, prediction="red"), answered(questions, prediction="blue")
    failed = answered(questions, prediction=None, status="out_of_memory")
    refused = answered(questions, prediction=None, status="too_long")
    for tables in ([one, two, refused, failed], [failed, refused, two, one]):
        assert merge(questions, pa.concat_tables(tables))["prediction"].to_pylist() == ["blue"]


def test_an_answer_stands_under_the_names_that_are_asked_for_now() -> None:
    """The same tokens under another id, as of a copied file: what was answered before is the answer, and not its old name."""
    before = asked(1)
    now = pa.Table.from_pylist([{**before.to_pylist()[0], "video_id": "new", "store_id": "v_new"}], schema=QUESTIONS_ASKED)
    found = merge(now, answered(before)).to_pylist()[0]
    assert (found["video_id"], found["store_id"], found["prediction"]) == ("new", "v_new", "it is q0")


def test_a_turn_has_the_answer_that_followed_the_turns_before_it(store: AnswerStore) -> None:
    """The same second question after two first ones: two answers, each where it belongs, and none where a turn was left out."""
    talks = {}
    for first in ("", "h1", "h2"):
        row = {**asked(1).to_pylist()[0], "turn": 2, "history": first}
        talks[first] = pa.Table.from_pylist([row], schema=QUESTIONS_ASKED)
    store.commit(answered(talks["h1"], prediction="red"))
    store.commit(answered(talks["h2"], prediction="blue"))
    assert store.merged(talks["h1"])["prediction"].to_pylist() == ["red"]
    assert store.merged(talks["h2"])["prediction"].to_pylist() == ["blue"]
    assert store.pending(talks[""]).num_rows == 1


def test_a_missing_video_is_a_row_even_before_it_was_asked(store: AnswerStore) -> None:
    """Nothing was run: questions without tokens are missing, questions with tokens are pending. None is left out."""
    assert store.finish(asked(2)) == {"pending": 2}
    assert store.finish(asked(2, payload=None)) == {"missing_video": 2}


def test_a_changed_unit_is_asked_again(store: AnswerStore, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One flipped byte anywhere in a committed unit: as if it had not been given; committed once more, it is whole."""
    given = answered(asked())
    unit = store.commit(given)["unit"]
    path = tmp_path / "out" / "answers" / store.fingerprint / f"{unit}.parquet"
    whole = path.read_bytes()
    content = bytearray(whole)
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert store.pending(asked()).num_rows == asked().num_rows
    assert unit in caplog.text
    store.commit(given)
    assert path.read_bytes() == whole
    assert store.pending(asked()).num_rows == 0


def test_answers_of_another_spec_are_another_set(store: AnswerStore, tmp_path: Path) -> None:
    """A changed prompt misses; both specs stay readable as JSON beside the answers."""
    store.commit(answered(asked()))
    other = AnswerStore.create(str(tmp_path / "out"), {**SPEC, "prompt": {"style": "original"}})
    assert other.pending(asked()).num_rows == 6
    specs = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "out" / "specs").iterdir()}
    assert specs[store.fingerprint] == SPEC
    assert specs.keys() == {store.fingerprint, other.fingerprint}


def test_the_commit_stage_returns_what_it_committed(tmp_path: Path) -> None:
    """One manifest row per unit; a unit without rows leaves no file."""
    store = AnswerStore.create(str(tmp_path), SPEC)
    stage = CommitAnswers(str(tmp_path), store.fingerprint)
    mixed = pa.concat_tables([answered(asked(2)), answered(asked(1, payload=None), status="missing_video")])
    assert stage(mixed).to_pylist()[0].items() >= {"status": "committed", "questions": 3, "ok": 2}.items()
    assert stage(mixed)["status"].to_pylist() == ["duplicate"]
    assert stage(ANSWERS.empty_table()).num_rows == 0


def test_answers_live_on_any_fsspec_url() -> None:
    """The in-memory file system commits, resumes and merges as the local one."""
    store = AnswerStore.create("memory://answers-test", SPEC)
    store.commit(answered(asked()))
    assert AnswerStore.create("memory://answers-test", SPEC).pending(asked()).num_rows == 0
    assert store.finish(asked()) == {"ok": 6}


def test_units_hold_whole_videos() -> None:
    """Questions of one video are never split, each question is in one unit, and the last unit may be smaller."""
    questions = asked(9)
    tables = list(units(questions, videos_per_unit=2))
    assert [sorted(set(table["video_id"].to_pylist())) for table in tables] == [["clip0", "clip1"], ["clip2"]]
    assert sorted(pa.concat_tables(tables)["question_id"].to_pylist()) == sorted(questions["question_id"].to_pylist())
    assert list(units(questions.slice(0, 0))) == []
    with pytest.raises(ConfigError, match="at least 1"):
        units(questions, videos_per_unit=0)


def test_a_unit_counts_entries_by_what_is_read() -> None:
    """Two names of one entry are one, read once; each video that is missing is one of its own."""
    rows = asked(6).to_pylist()
    for row, store_id in zip(rows, ("x", "y", "x", None, None, None), strict=True):
        row |= {"video_id": f"name{row['question_id']}", "store_id": store_id}
    found = [unit["question_id"].to_pylist() for unit in units(pa.Table.from_pylist(rows, schema=QUESTIONS_ASKED), 1)]
    assert found == [["q0", "q2"], ["q1"], ["q3"], ["q4"], ["q5"]]


def test_units_do_not_depend_on_the_order_of_the_questions() -> None:
    """A shuffled question file gives the same units, byte for byte, so a repeated commit is found."""
    questions = asked(9)
    shuffled = questions.take(random.Random(4).sample(range(9), 9))
    assert [to_parquet(u) for u in units(questions, 2)] == [to_parquet(u) for u in units(shuffled, 2)]


def test_a_folder_may_have_the_name_of_a_pattern(tmp_path: Path) -> None:
    """Brackets and stars in a path are names: nothing is lost, nothing of a folder that the pattern fits is read."""
    plain = AnswerStore.create(str(tmp_path / "out1"), SPEC)
    plain.commit(answered(asked(3)))
    for name in ("out[1]", "out*"):
        other = AnswerStore.create(str(tmp_path / name), SPEC)
        assert other.committed().num_rows == 0
        other.commit(answered(asked()))
        assert other.pending(asked()).num_rows == 0
        assert other.finish(asked()) == {"ok": 6}


def test_units_of_the_first_version_are_read(store: AnswerStore) -> None:
    """They have no columns for turns: their questions were asked by themselves and stay answered."""
    content = to_parquet(answered(asked()).drop_columns(["turn", "history"]))
    unit = Path(store.folder) / f"{hashlib.sha256(content).hexdigest()}.parquet"
    unit.parent.mkdir(parents=True)
    unit.write_bytes(content)
    assert store.pending(asked()).num_rows == 0
    assert store.finish(asked()) == {"ok": 6}


def test_whole_files_take_the_place_of_old_ones(store: AnswerStore) -> None:
    """Who has the old file open reads on in it to its end: the new one is another file under its name."""
    store.commit(answered(asked(3)))
    store.finish(asked(3))
    lines, table = (Path(store.root) / name for name in ("answers.jsonl", "answers.parquet"))
    with lines.open() as reader, table.open("rb") as columns:
        first = reader.readline()
        store.finish(asked())
        assert len([first, *reader]) == 3
        assert pq.read_table(columns).num_rows == 3
    assert len(lines.read_text().splitlines()) == pq.read_table(table).num_rows == 6
