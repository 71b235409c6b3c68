"""Repair, compaction, cleared failures, and what may rot."""

import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from jobs.commands.store import StoreJob, run
from pipeline.errors import ConfigError, StoreError
from pipeline.storage.filesystem import list_files, open_root
from pipeline.store.maintenance import clear, compact, gc, repair
from pipeline.store.shards import read_footer
from pipeline.store.token_store import TokenStore
from pipeline.store.verify import verify
from tests.pipeline.filled import NAMES, Place, filled
from tests.tables import SPEC, corpus, encoded, failed, row


def test_compaction_merges_shards_and_fragments_and_changes_no_entry(place: Place) -> None:
    """One fragment, the same rows, readers that were open before go on, gc then removes the old shards."""
    store = filled(place)
    reader = TokenStore.open(place[0], storage_options=place[1])
    before = {name: reader.read(name).payload_sha256 for name in NAMES}
    told = compact(TokenStore.open(place[0], storage_options=place[1]))
    assert (told["fragments_before"], told["fragments"], told["shards_written"]) == (5, 1, 1)
    fresh = TokenStore.open(place[0], storage_options=place[1])
    assert fresh.ids() == sorted(NAMES)
    assert fresh.failures()["video_id"].to_pylist() == ["bad"]
    fs, root = open_root(*place)
    assert gc(fs, root, grace_s=3600)["files"] == 0
    assert gc(fs, root, grace_s=3600, now=time.time() + 7200)["files"] == 4
    assert {name: reader.read(name).payload_sha256 for name in NAMES} == before
    report = verify(fs, root)
    assert (report.problems, report.entries, report.shards, report.orphans) == ([], 12, 1, 0)
    store.commit(encoded([row("later")]))
    reader.refresh()
    assert len(reader.ids()) == 13


def test_compacting_twice_is_compacting_once(tmp_path: Path) -> None:
    """Nothing small is left, nothing is written."""
    store = filled((str(tmp_path), {}))
    compact(store)
    again = compact(TokenStore.open(str(tmp_path)))
    assert again == {"fragments_before": 1, "fragments": 1, "shards_written": 0}


@pytest.mark.parametrize("kind", ["specs", "index", "tokens", "a footer"])
def test_a_rotten_byte_is_repaired_by_encoding_again_just_what_it_hit(tmp_path: Path, kind: str) -> None:
    """verify names it, repair takes it out, the next run brings it back; nothing else is encoded again."""
    filled((str(tmp_path), {}))
    path = sorted((tmp_path / ("tokens" if kind == "a footer" else kind)).rglob("*.*"))[0]
    content = bytearray(path.read_bytes())
    content[len(content) - 30 if kind == "a footer" else 40] ^= 4
    path.write_bytes(bytes(content))
    fs, root = open_root(str(tmp_path))
    assert verify(fs, root).problems
    told = repair(fs, root)
    lost = {"specs": (1, 0, 0), "index": (0, 1, 0), "tokens": (0, 0, 1), "a footer": (0, 0, 0)}
    assert (told.specs, told.fragments, len(told.entries)) == lost[kind]
    store = TokenStore.create(str(tmp_path), SPEC)
    todo = store.missing(corpus(*NAMES))["video_id"].to_pylist()
    assert len(todo) in {"specs": (0,), "index": (0, 3), "tokens": (1,), "a footer": (0,)}[kind]
    store.commit(encoded([row(name) for name in todo]))
    store.refresh()
    assert store.ids() == sorted(NAMES)
    assert all(store.read(name).features.tobytes() == row(name)["features"] for name in NAMES)
    gc(fs, root, grace_s=1, now=time.time() + 10)
    assert not verify(fs, root).problems


def test_a_rotten_spec_is_made_whole_by_the_next_encode(place: Place) -> None:
    """Its name says what it was, and whoever encodes knows it."""
    url, options = place
    store = filled(place)
    path = f"{store.root}/specs/{store.fingerprint}.json"
    store.fs.pipe_file(path, store.fs.cat_file(path).replace(b"none", b"nine"))
    with pytest.raises(StoreError, match="spec was changed"):
        TokenStore.open(url, storage_options=options)
    TokenStore.create(url, SPEC, options)
    assert TokenStore.open(url, storage_options=options).ids() == sorted(NAMES)


def test_a_rotten_fragment_does_not_bring_back_what_it_replaced(tmp_path: Path) -> None:
    """The entry of the old content is there, and is not served: neither if the ids can still be read nor if they cannot."""
    for position in ("ids", "elsewhere"):
        root = tmp_path / position
        store = TokenStore.create(str(root), SPEC)
        store.commit(encoded([row("a", seed=1), row("b")]))
        before = set(files_of(store.index.folder))
        store.commit(encoded([row("a", seed=2, source_hint='{"size":2}')]))
        (newer,) = set(files_of(store.index.folder)) - before
        content = bytearray(newer.read_bytes())
        content[20 if position == "ids" else len(content) // 2] ^= 1
        newer.write_bytes(bytes(content))
        with pytest.raises(StoreError):
            TokenStore.open(str(root))
        told = repair(*open_root(str(root)))
        assert (told.fragments, told.doubtful) == (1, ["a"])
        after = TokenStore.open(str(root))
        assert after.ids() == ["b"]
        assert after.missing(corpus("a", "b"))["video_id"].to_pylist() == ["a"]


def files_of(folder: str) -> list[Path]:
    return sorted(Path(folder).glob("*.parquet"))


def test_cleared_failures_are_taken_up_by_the_next_encode(place: Place) -> None:
    """Only those of the classes asked for; twice is once; a success or another failure afterwards stands."""
    url, options = place
    store = TokenStore.create(url, SPEC, options)
    store.commit(encoded([row("a"), failed("b", "TIMEOUT"), failed("c", "CRASHED"), failed("d")]))
    store.refresh()
    everything = corpus(*"abcd")
    assert store.missing(everything).num_rows == 0
    assert clear(store, {"TIMEOUT", "CRASHED"}) == {"CRASHED": 1, "TIMEOUT": 1}
    assert clear(TokenStore.open(url, storage_options=options), {"TIMEOUT", "CRASHED"}) == {"CRASHED": 0, "TIMEOUT": 0}
    assert store.failures()["error_class"].to_pylist() == ["TIMEOUT", "CRASHED", "CORRUPT"]
    assert store.missing(everything)["video_id"].to_pylist() == ["b", "c"]
    assert store.missing(corpus(*"abcd", hint="{}"))["video_id"].to_pylist() == ["b", "c"]
    store.commit(encoded([row("b"), failed("c", "CRASHED")]))
    fresh = TokenStore.open(url, storage_options=options)
    assert (fresh.ids(), fresh.missing(everything).num_rows) == (["a", "b"], 0)


def test_cleared_failures_are_told_apart_until_the_next_encode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`stats` and `ls` say that they wait; one that fails again is a failure again."""
    store = TokenStore.create(str(tmp_path), SPEC)
    store.commit(encoded([row("a"), failed("b", "TIMEOUT"), failed("c", "TIMEOUT"), failed("d")]))
    look = partial(StoreJob, store=str(tmp_path))
    run(look(what="retry", classes="timeout"))
    (told,) = run(look(what="stats"))["specs"]
    assert (told["failed"], told["cleared"]) == ({"CORRUPT": 1}, {"TIMEOUT": 2})
    assert run(look(what="ls")) == {"fingerprint": store.fingerprint, "committed": 1, "failed": 1, "cleared": 2}
    listed = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in listed] == ["committed", "cleared", "cleared", "failed"]
    store.commit(encoded([row("b"), failed("c", "TIMEOUT")]))
    (told,) = run(look(what="stats"))["specs"]
    assert (told["videos"], told["failed"], told["cleared"]) == (2, {"CORRUPT": 1, "TIMEOUT": 1}, {})


def test_a_view_is_not_written_among_the_files_of_its_store(tmp_path: Path) -> None:
    filled((str(tmp_path / "store"), {}))
    with pytest.raises(ConfigError, match="--out must differ from STORE"):
        run(StoreJob(what="export", store=str(tmp_path / "store"), out=f"{tmp_path}/store/"))
    run(StoreJob(what="export", store=str(tmp_path / "store"), out=f"{tmp_path}/store/view"))


@pytest.mark.parametrize("classes", ["", "SLOW", "TIMEOUT,SLOW"])
def test_unknown_classes_are_not_cleared(tmp_path: Path, classes: str) -> None:
    """One line that names the known ones."""
    filled((str(tmp_path), {}))
    with pytest.raises(ConfigError, match="TIMEOUT"):
        run(StoreJob(what="retry", store=str(tmp_path), classes=classes))


def test_compaction_cuts_the_index_so_that_rot_costs_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fragments of bounded size; compacting again changes nothing; one rotten fragment costs its own rows."""
    monkeypatch.setattr("pipeline.store.maintenance.ROWS_PER_FRAGMENT", 5)
    filled((str(tmp_path), {}))
    assert compact(TokenStore.open(str(tmp_path)))["fragments"] == 3
    assert compact(TokenStore.open(str(tmp_path))) == {"fragments_before": 3, "fragments": 3, "shards_written": 0}
    store = TokenStore.open(str(tmp_path))
    path = files_of(store.index.folder)[0]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    repair(*open_root(str(tmp_path)))
    assert len(TokenStore.open(str(tmp_path)).missing(corpus(*NAMES))) <= 5


def test_entries_keep_every_column_when_they_are_moved(tmp_path: Path) -> None:
    """The optional ones too."""
    store = TokenStore.create(str(tmp_path), SPEC)
    extra = {"clip_space": bytes(range(12)), "clip_scale": np.arange(6, dtype="<f4").tobytes()}
    for name in "ab":
        store.commit(encoded([row(name, **extra)]))
    store.refresh()
    before = store.read("a").clip_space
    assert compact(TokenStore.open(str(tmp_path)))["shards_written"] == 1
    after = TokenStore.open(str(tmp_path)).read("a").clip_space
    assert before is not None
    assert after is not None
    assert after.tobytes() == before.tobytes()


def alias(store: TokenStore, name: str, of: str, stored_id: str | None) -> None:
    """List another video whose tokens are the entry of one that is there."""
    known = store.index.get(of) or {}
    store.index.append([known | {"video_id": name, "stored_id": stored_id}])
    store.refresh()


def test_compaction_keeps_one_entry_of_videos_that_share_it(place: Place) -> None:
    """All of them are served from it afterwards, and removal takes none away."""
    url, options = place
    store = TokenStore.create(url, SPEC, options)
    for name in "ab":
        store.commit(encoded([row(name)]))
    store.refresh()
    for name in ("a2", "a3"):
        alias(store, name, "a", "a")
    assert compact(TokenStore.open(url, storage_options=options), entries_per_shard=4)["shards_written"] == 1
    fs, root = open_root(url, options)
    gc(fs, root, now=time.time() + 1e6)
    fresh = TokenStore.open(url, storage_options=options)
    ((shard, _),) = list_files(fs, fresh.tokens, ".parquet").items()
    assert read_footer(fs, shard).num_row_groups == 2
    assert {name: fresh.read(name).video_id for name in fresh.ids()} == {"a": "a", "a2": "a", "a3": "a", "b": "b"}
    report = verify(fs, root)
    assert (report.problems, report.entries) == ([], 4)


def test_an_entry_of_another_video_is_neither_served_nor_verified_as_its_own(tmp_path: Path) -> None:
    """Every digest is right; the index names it for a video that it is not of."""
    store = TokenStore.create(str(tmp_path), SPEC)
    store.commit(encoded([row("a"), row("b")]))
    store.refresh()
    alias(store, "z", "a", None)
    alias(store, "y", "a", "b")
    for name in "zy":
        with pytest.raises(StoreError, match=r"expected the entry of [zb], got a"):
            store.read(name)
    report = verify(*open_root(str(tmp_path)))
    assert sorted(report.damaged) == ["y", "z"]
    assert all("got a" in problem for problem in report.problems)
    assert report.entries == 2
