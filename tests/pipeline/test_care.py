"""Repair, compaction and removal, beside readers and writers."""

import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.care import compact, gc, repair
from pipeline.filesystem import create_exclusive, open_root
from pipeline.fingerprint import fingerprint
from pipeline.store import TokenStore
from pipeline.verify import verify
from tests.tables import SPEC, corpus, encoded, failed, row

Place = tuple[str, dict[str, Any]]
NAMES = [f"v{number}" for number in range(12)]


def filled(place: Place) -> TokenStore:
    url, options = place
    store = TokenStore.create(url, SPEC, options)
    for start in range(0, 12, 3):
        store.commit(encoded([row(name) for name in NAMES[start : start + 3]]))
    store.commit(encoded([failed("bad")]))
    store.refresh()
    return store


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


def test_gc_spares_what_a_running_job_may_still_commit(tmp_path: Path) -> None:
    """A shard whose fragment is not written yet is young; old orphans and dropped fingerprints go."""
    store = filled((str(tmp_path), {}))
    other = {**SPEC, "reducer": {"name": "spatial", "version": 1}}
    TokenStore.create(str(tmp_path), other).commit(encoded([row("a")]))
    fs, root = open_root(str(tmp_path))
    create_exclusive(fs, f"{store.tokens}/{'0' * 64}.parquet", b"x" * 100)
    assert gc(fs, root) == {"files": 0, "bytes": 0}
    assert gc(fs, root, now=time.time() + 2 * 24 * 3600) == {"files": 1, "bytes": 100}
    assert gc(fs, root, drop=fingerprint(other)[:12])["files"] == 3
    assert TokenStore.open(str(tmp_path)).ids() == sorted(NAMES)
