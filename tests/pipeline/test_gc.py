"""Removal of files out of use, beside readers, writers and compaction."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import StoreError
from pipeline.fingerprint import fingerprint
from pipeline.storage.filesystem import create_exclusive, list_files, open_root
from pipeline.store.maintenance import compact, gc
from pipeline.store.token_store import TokenStore
from pipeline.store.verify import verify
from tests.pipeline.filled import NAMES, Place, filled
from tests.tables import SPEC, encoded, row


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


def test_an_index_that_cannot_be_listed_is_not_an_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A faulty disk or mount, here a link that leads to itself: removal would take every shard for one that nobody names."""
    monkeypatch.setattr("pipeline.storage.retry.FIRST_WAIT_S", 0.01)
    store = filled((str(tmp_path), {}))
    fs, root = open_root(str(tmp_path))
    index = Path(store.index.folder)
    aside = index.rename(index.with_name("aside"))
    index.symlink_to(index)
    with pytest.raises(StoreError, match="cannot be listed"):
        gc(fs, root, now=time.time() + 1e6)
    with pytest.raises(StoreError, match="cannot be listed"):
        TokenStore.open(str(tmp_path))
    index.unlink()
    aside.rename(index)
    assert TokenStore.open(str(tmp_path)).ids() == sorted(NAMES)
    assert verify(fs, root).entries == 12


class Pages(LocalFileSystem):
    """Lists an index in two pages, as object storage does; between those of one listing something happens."""

    cachable = False
    split = ""
    between: Sequence[Callable[[], object]] = ()
    """For each listing."""

    def find(self, path: str, *args: Any, **kwargs: Any) -> Any:
        if "/index/" not in path:
            return super().find(path, *args, **kwargs)
        first = super().find(path, *args, **kwargs)
        for happens in self.between[:1]:
            happens()
        self.between = self.between[1:]
        second = super().find(path, *args, **kwargs)
        return {
            **{name: info for name, info in first.items() if name <= self.split},
            **{name: info for name, info in second.items() if name > self.split},
        }


def test_gc_beside_compaction_keeps_what_a_listing_missed(tmp_path: Path) -> None:
    """The merged fragment was not there yet when its page was listed, the others were gone when theirs was."""
    for seed in range(1000):
        store = TokenStore.create(str(tmp_path / str(seed)), SPEC)
        for name in "ab":
            store.commit(encoded([row(name, seed)]))
        store.refresh()
        merged = store.index.path(store.index.rows.to_pylist())
        if merged < min(store.index.read):
            break
    fs = Pages()
    fs.split, fs.between = merged, (lambda: None, lambda: compact(store, entries_per_shard=1))  # what is there, what is in use
    gc(fs, store.root, now=time.time() + 1e6)
    assert list_files(store.fs, store.index.folder, ".parquet").keys() == {merged}
    assert verify(store.fs, store.root).problems == []


def test_gc_removes_what_killed_writers_left_half_written(tmp_path: Path) -> None:
    """Only when it is old; what is committed stays whatever its age."""
    store = filled((str(tmp_path), {}))
    for folder in (store.tokens, store.index.folder):
        Path(folder, ".shard.0123.tmp").write_bytes(b"half")
    fs, root = open_root(str(tmp_path))
    assert gc(fs, root)["files"] == 0
    assert gc(fs, root, now=time.time() + 2 * 24 * 3600) == {"files": 2, "bytes": 8}
    assert verify(fs, root).entries == 12


def test_a_unit_committed_again_makes_its_old_orphan_young(place: Place) -> None:
    """A crash left its shard two days ago; gc runs between the new shard and its fragment and must let it be."""
    url, options = place
    store = TokenStore.create(url, SPEC, options)
    unit = encoded([row("a")])
    store.commit(unit)
    (fragment,) = list_files(store.fs, store.index.folder, ".parquet")
    (shard,) = list_files(store.fs, store.tokens, ".parquet")
    store.fs.rm_file(fragment)
    since = aged(store, shard)
    append = store.index.append

    def late(rows: list[dict[str, Any]]) -> bool:
        assert gc(*open_root(url, options), grace_s=3600, now=since + 7200)["files"] == 0
        return append(rows)

    store.index.append = late  # type: ignore[method-assign]  # the moment between
    store.index.refresh()
    store.commit(unit)
    assert TokenStore.open(url, storage_options=options).read("a").features.tobytes() == row("a")["features"]


def aged(store: TokenStore, path: str) -> float:
    """Make a file an hour and more older than what is written from now on; returns a time when only it is old.

    On object storage no time can be set: there the clock of `gc` goes by what the server says.
    """
    if not path.startswith("/"):
        time.sleep(1.1)  # its times have whole seconds
        return float(store.fs.info(path)["LastModified"].timestamp()) + 3600 - 7200 + 0.5
    os.utime(path, (time.time() - 2 * 3600 * 24,) * 2)
    return time.time() - 7200


WRITER = """
import sys
from pathlib import Path
from pipeline.store.token_store import TokenStore
from tests.tables import SPEC, encoded, row
store = TokenStore.create({url!r}, SPEC)
for unit in range(40):
    Path({beat!r}).touch()
    store.commit(encoded([row(f"w{{unit:03}}-{{i}}", tokens=16, width=64) for i in range(3)]))
print(120)
"""


READER = """
import sys
from pathlib import Path
from pipeline.store.token_store import TokenStore
from tests.tables import row
store, seen = TokenStore.open({url!r}), 0
while True:
    Path({beat!r}).touch()
    store.refresh()
    ids = store.ids()
    for name in ids:
        width = {{"tokens": 16, "width": 64}} if name[0] == "w" else {{}}
        assert store.read(name).features.tobytes() == row(name, **width)["features"], name
    assert len(ids) >= seen, (len(ids), seen)
    seen = len(ids)
    if seen == 132:
        break
print(seen)
"""


def test_compaction_and_gc_beside_a_writer_and_a_reader(tmp_path: Path) -> None:
    """Three real processes: every entry is read right all the time, none is lost, and the store ends small and whole.

    What was written before both others began what they are at is old: no pause of theirs, however long, outlasts the grace.
    """
    url, beats = str(tmp_path / "store"), [tmp_path / "writer", tmp_path / "reader"]
    filled((url, {}))
    for beat in beats:
        beat.touch()
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    codes = [code.format(url=url, beat=str(beat)) for code, beat in zip((WRITER, READER), beats, strict=True)]
    writer, reader = (
        subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True) for code in codes
    )
    rounds = 0
    while writer.poll() is None:
        compact(TokenStore.open(url), entries_per_shard=32)
        gc(*open_root(url), grace_s=0, now=min(beat.stat().st_mtime for beat in beats))
        rounds += 1
    assert (writer.communicate()[0].strip(), reader.communicate()[0].strip()) == ("120", "132")
    assert rounds > 1
    compact(TokenStore.open(url), entries_per_shard=32)
    fs, root = open_root(url)
    gc(fs, root, now=time.time() + 1e6)
    report = verify(fs, root)
    assert (report.problems, report.entries, report.fragments, report.orphans) == ([], 132, 1, 0)
    assert report.shards < 40
