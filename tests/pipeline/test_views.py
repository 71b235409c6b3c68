"""Views: which videos the files of captions hold, whatever the order in which runs see, commit and write."""

import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest

from pipeline.answer.answer_store import ANSWERS, QUESTIONS_ASKED, AnswerStore
from pipeline.answer.caption_runs import View, Views, heads

Place = tuple[str, dict[str, Any]]
ANSWERED_BY = "0" * 64


def asked(*names: str, prompt: str = "what") -> pa.Table:
    rows = [
        {
            "question_id": f"caption:{name}",
            "video_id": name,
            "question": prompt,
            "store_id": name,
            "payload_sha256": f"p-{name}",
        }
        for name in names
    ]
    return pa.Table.from_pylist(rows, schema=QUESTIONS_ASKED)


def commit(place: Place, questions: pa.Table) -> None:
    """Commit an answer to each question."""
    rows = [{**row, "prediction": f"{row['question']} {row['video_id']}", "status": "ok"} for row in questions.to_pylist()]
    AnswerStore(place[0], ANSWERED_BY, place[1]).commit(pa.Table.from_pylist(rows, schema=ANSWERS))


def run(place: Place, *names: str, seen: frozenset[str], complete: bool = True, **more: Any) -> list[str]:
    """Publish what a run saw that looked at the views before; returns the rows of its files."""
    view = View(asked=asked(*names, **more), answers=ANSWERED_BY, replaces=seen)
    Views(*place).publish(view, {name: f"p-{name}" for name in names}, complete=complete)
    return written(place)


def written(place: Place) -> list[str]:
    fs, root = fsspec.core.url_to_fs(place[0], **place[1])
    fs.invalidate_cache()
    rows = [json.loads(line) for line in fs.cat_file(f"{root}/captions.jsonl").splitlines()]
    return [row["video_id"] if row["status"] == "ok" else f"{row['video_id']}?" for row in rows]


def subtitles(place: Place) -> set[str]:
    fs, root = fsspec.core.url_to_fs(place[0], **place[1])
    fs.invalidate_cache()
    return {path.rsplit("/", 1)[-1].removesuffix(".srt") for path in fs.find(f"{root}/srt")}


def now(place: Place) -> frozenset[str]:
    return Views(*place).names()


def test_a_view_replaces_what_its_run_had_seen_and_nothing_else(place: Place) -> None:
    """Two that overlapped are united, in the order of ids; the next run decides, and no old view stays."""
    commit(place, asked("a", "b", "c", "d"))
    assert run(place, "a", "b", seen=now(place)) == ["a", "b"]
    before = now(place)
    assert run(place, "a", "d", seen=before) == ["a", "d"]
    assert run(place, "a", "c", seen=before) == ["a", "c", "d"]
    assert len(now(place)) == 2
    assert run(place, "c", seen=now(place)) == ["c"]
    assert len(now(place)) == 1


def test_a_run_that_saw_nothing_new_commits_no_view(place: Place) -> None:
    commit(place, asked("a"))
    run(place, "a", seen=now(place))
    before = now(place)
    run(place, "a", seen=before)
    assert now(place) == before


def test_the_same_videos_under_other_settings_are_another_view(place: Place) -> None:
    """Their captions are in the files, not those that stood there."""
    commit(place, asked("a"))
    run(place, "a", seen=now(place))
    before = now(place)
    other = AnswerStore(place[0], "1" * 64, place[1])
    rows = [{**row, "prediction": "said anew", "status": "ok"} for row in asked("a").to_pylist()]
    other.commit(pa.Table.from_pylist(rows, schema=ANSWERS))
    view = View(asked=asked("a"), answers="1" * 64, replaces=before)
    rows = Views(*place).publish(view, {"a": "p-a"}, complete=True).to_pylist()
    assert [row["caption"] for row in rows] == ["said anew"]
    assert not now(place) & before


def test_one_of_two_views_that_stand_side_by_side_does_not_speak_for_both(place: Place) -> None:
    """A run that has seen both and says what one of them says replaces them all the same."""
    commit(place, asked("a", "b"))
    for name in "ab":
        run(place, name, seen=frozenset())
    assert written(place) == ["a", "b"]
    assert run(place, "a", seen=now(place)) == ["a"]
    assert len(now(place)) == 1


def test_a_late_run_that_says_what_a_replaced_view_said_counts_all_the_same(place: Place) -> None:
    """It began before anything was known: its view is its own, not the one that was replaced."""
    commit(place, asked("a", "b"))
    run(place, "a", seen=frozenset())
    run(place, "b", seen=now(place))
    assert run(place, "a", seen=frozenset()) == ["a", "b"]


def test_a_replaced_view_that_was_left_lying_is_no_reason_for_another(tmp_path: Path) -> None:
    """A run was killed before it removed it: the next one that says the same commits nothing and tidies up."""
    place: Place = (str(tmp_path), {})
    commit(place, asked("a", "b"))
    run(place, "a", seen=now(place))
    (left,) = (tmp_path / "views").iterdir()
    content = left.read_bytes()
    run(place, "b", seen=now(place))
    (current,) = now(place)
    left.write_bytes(content)
    assert run(place, "b", seen=now(place)) == ["b"]
    assert now(place) == {current}


class Interrupted(Views):
    """Another run comes in between, after this one has looked at the views and before it writes."""

    other: Any = None

    def _rows(self, view: View) -> pa.Table:
        other, self.other = self.other, None
        if other is not None:
            other()
        return super()._rows(view)


def test_the_last_writer_has_seen_every_view(place: Place) -> None:
    """Another run commits a view and writes its files while this one is at it: this one writes again and keeps both."""
    parts = ["#t=0.000,4.000", "#t=4.000,8.000"]
    names = {name: [name + part for part in parts] for name in "abc"}
    commit(place, asked(*names["a"], *names["b"], *names["c"]))
    run(place, *names["a"], *names["b"], seen=now(place))
    before = now(place)
    views = Interrupted(*place)
    views.other = lambda: run(place, *names["a"], *names["b"], *names["c"], seen=before)
    views.publish(View(asked=asked(*names["a"]), answers=ANSWERED_BY, replaces=before), {}, complete=True)
    assert views.other is None
    assert subtitles(place) == {"a", "b", "c"}
    assert sorted(set(written(place))) == ["a", "b", "c"]


def test_a_run_whose_view_another_one_replaced_meanwhile_adds_nothing(place: Place) -> None:
    """The other one began later, saw this view, and found a video gone: it stays gone."""
    commit(place, asked("a", "b"))
    views = Interrupted(*place)
    views.other = lambda: run(place, "b", seen=now(place))
    views.publish(View(asked=asked("a", "b"), answers=ANSWERED_BY), {}, complete=True)
    assert written(place) == ["b"]


def test_subtitles_go_with_their_video_and_no_others(place: Place) -> None:
    """A view that is replaced leaves nothing of the videos that nobody knows any more."""
    parts = ["#t=0.000,4.000", "#t=4.000,8.000"]
    names = {name: [name + part for part in parts] for name in "ab"}
    commit(place, asked(*names["a"], *names["b"]))
    run(place, *names["a"], *names["b"], seen=now(place))
    assert subtitles(place) == {"a", "b"}
    run(place, *names["b"], seen=now(place))
    assert subtitles(place) == {"b"}


def test_subtitles_of_a_video_that_is_whole_now_are_removed_and_those_of_others_are_not(place: Place) -> None:
    """Only what a view says was cut had subtitles of ours."""
    parts = ["a#t=0.000,4.000", "a#t=4.000,8.000"]
    commit(place, asked(*parts, "a", "b"))
    run(place, *parts, "b", seen=now(place))
    fs, root = fsspec.core.url_to_fs(place[0], **place[1])
    fs.pipe_file(f"{root}/srt/b.srt", b"somebody else's")
    assert subtitles(place) == {"a", "b"}
    run(place, "a", seen=now(place))
    assert subtitles(place) == {"b"}


class Overtaken(Views):
    """Another run comes in between, after this one has read what the views say."""

    other: Any = None

    def read(self) -> dict[str, View]:
        found = super().read()
        other, self.other = self.other, None
        if other is not None:
            other()
        return found


def test_a_view_that_comes_while_the_others_are_read_is_in_the_files(place: Place) -> None:
    """Names are listed before views are read: what was not read was not listed either."""
    commit(place, asked("a", "b"))
    run(place, "a", seen=now(place))
    views = Overtaken(*place)
    before = now(place)
    views.other = lambda: run(place, "b", seen=frozenset())
    views.publish(View(asked=asked("a"), answers=ANSWERED_BY, replaces=before), {}, complete=False)
    assert written(place) == ["a", "b"]


@pytest.mark.parametrize("name", "abcdef")
def test_of_two_views_the_one_with_more_captions_speaks_for_a_video(tmp_path: Path, name: str) -> None:
    """Whatever their names are."""
    place: Place = (str(tmp_path), {})
    commit(place, asked(name))
    for prompt in ("how", "what"):
        run(place, name, seen=frozenset(), prompt=prompt)
    assert written(place) == [name]
    assert len(now(place)) == 2


def test_a_run_that_was_stopped_adds_and_takes_nothing_away(place: Place) -> None:
    """What it had no time for keeps the caption it had; what is new and has none yet is a row without one."""
    commit(place, asked("a", "b"))
    run(place, "a", "b", seen=now(place))
    before = now(place)
    commit(place, asked("a", "c", prompt="how"))
    assert run(place, "a", "c", "d", seen=before, complete=False, prompt="how") == ["a", "b", "c", "d?"]
    assert now(place) == before
    fs, root = fsspec.core.url_to_fs(place[0], **place[1])
    said = [json.loads(line)["caption"] for line in fs.cat_file(f"{root}/captions.jsonl").splitlines()]
    assert said == ["how a", "what b", "how c", None]


@pytest.mark.parametrize("name", "uvwxyz")
def test_all_rows_of_a_video_come_from_one_view(tmp_path: Path, name: str) -> None:
    """Two runs that overlapped saw a video of two lengths: what the store holds now is taken, not a mixture."""
    place: Place = (str(tmp_path), {})
    old, new = [[f"{name}#t=0.000,4.000", f"{name}#t=4.000,{end}.000"] for end in (9, 8)]
    stale = asked(*old)
    stale = stale.set_column(
        stale.column_names.index("payload_sha256"), "payload_sha256", pa.array(["before", f"p-{old[1]}"], pa.string())
    )
    commit(place, stale)
    commit(place, asked(*new))
    views = Views(*place)
    payloads = {name: f"p-{name}" for name in {*old, *new}}
    for questions in (asked(*new), stale):
        views.publish(View(asked=questions, answers=ANSWERED_BY), payloads, complete=True)
    ends = [json.loads(line)["end_s"] for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    assert ends == [4.0, 8.0]


def test_a_view_that_rotted_is_left_out_and_replaced(tmp_path: Path) -> None:
    place: Place = (str(tmp_path), {})
    commit(place, asked("a", "b"))
    run(place, "a", seen=now(place))
    rotten = tmp_path / "views" / f"{next(iter(now(place)))}.parquet"
    rotten.write_bytes(rotten.read_bytes()[:-9] + b"no parquet")
    assert heads(Views(*place).read()) == {}
    assert run(place, "b", seen=now(place)) == ["b"]
    assert not rotten.exists()


def said(place: Place) -> dict[str, str | None]:
    """The caption of each video in the files."""
    fs, root = fsspec.core.url_to_fs(place[0], **place[1])
    return {row["video_id"]: row["caption"] for row in map(json.loads, fs.cat_file(f"{root}/captions.jsonl").splitlines())}


@pytest.mark.parametrize("order", [("what", "how"), ("how", "what")])
def test_of_two_runs_that_overlapped_the_one_that_began_last_is_shown(tmp_path: Path, order: tuple[str, str]) -> None:
    """Whoever wrote first or last; a video that only the earlier one has a caption of keeps that."""
    place: Place = (str(tmp_path), {})
    commit(place, asked("a", "b", prompt="what"))
    commit(place, asked("a", prompt="how"))
    began = {"what": 100.0, "how": 200.0}
    for prompt in order:
        view = View(asked=asked("a", "b", prompt=prompt), answers=ANSWERED_BY, began_s=began[prompt])
        Views(*place).publish(view, {name: f"p-{name}" for name in "ab"}, complete=True)
    assert said(place) == {"a": "how a", "b": "what b"}


def test_subtitles_that_no_view_knows_go_with_their_video(place: Place) -> None:
    """Those that a stopped run wrote, which keeps no view; a file that nobody of us wrote stays."""
    parts = {name: [f"{name}#t=0.000,4.000", f"{name}#t=4.000,8.000"] for name in "ab"}
    commit(place, asked(*parts["a"], *parts["b"]))
    run(place, *parts["a"], *parts["b"], seen=now(place), complete=False)
    fs, root = fsspec.core.url_to_fs(place[0], **place[1])
    fs.pipe_file(f"{root}/srt/by_hand.srt", b"mine")
    assert (subtitles(place), now(place)) == ({"a", "b", "by_hand"}, frozenset())
    run(place, *parts["a"], seen=now(place))
    assert subtitles(place) == {"a", "by_hand"}


def test_captions_that_rotted_hold_up_nobody(tmp_path: Path) -> None:
    place: Place = (str(tmp_path), {})
    commit(place, asked("a"))
    (tmp_path / "captions.parquet").write_bytes(b"PAR1 and no more")
    assert run(place, "a", seen=now(place)) == ["a"]
