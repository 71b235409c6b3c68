"""A flipped byte anywhere: seen on reading, named by verify, taken out by repair, brought back by encoding just what it hit."""

import time
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import ConfigError, StoreError
from pipeline.storage.filesystem import open_root
from pipeline.store.maintenance import compact, gc, repair
from pipeline.store.token_store import TokenStore
from pipeline.store.verify import verify
from tests.tables import SPEC, corpus, encoded, failed, row

Place = tuple[str, dict[str, Any]]
NAMES = ["a", "b", "c", "d", "e"]
STALE = {"c": 0}
"""Videos that were replaced: the seed of what they were before."""


def truth(name: str) -> dict[str, Any]:
    return row(name, seed=7 if name in STALE else 0, source_hint='{"size":2}' if name in STALE else '{"size":1}')


def wanted(*names: str) -> pa.Table:
    return pa.concat_tables([corpus(name, hint=truth(name)["source_hint"]) for name in names])


def filled(place: Place) -> TokenStore:
    """Two units, a failure, a video that was replaced, and a merged index beside a small one."""
    url, options = place
    store = TokenStore.create(url, SPEC, options)
    store.commit(encoded([row("a"), row("b"), row("c")]))
    store.commit(encoded([row("d"), failed("bad")]))
    store.refresh()
    compact(store)
    fs, root = open_root(*place)
    gc(fs, root, now=time.time() + 1e6)
    store.commit(encoded([truth("c"), row("e")]))
    return TokenStore.open(url, storage_options=options)


def served(place: Place) -> dict[str, bytes | None]:
    """What a reader gets: the bytes of each video, None where it is told that something is wrong."""
    try:
        store = TokenStore.open(place[0], storage_options=place[1])
    except (StoreError, ConfigError):
        return dict.fromkeys(NAMES)
    found: dict[str, bytes | None] = {}
    for name in store.ids():
        try:
            found[name] = store.read(name).features.tobytes()
        except StoreError:
            found[name] = None
    return found


def rot(place: Place, path: str, whole: dict[str, bytes], at: int, bit: int) -> int:
    """Flip a bit, go all the way to a healthy store; returns how many videos had to be encoded for it."""
    url, options = place
    fs, root = open_root(url, options)
    content = bytearray(whole[path])
    content[at] ^= 1 << bit
    fs.pipe_file(path, bytes(content))
    where = f"{path} byte {at} bit {bit}"
    right = {name: truth(name)["features"] for name in NAMES}
    assert all(value in (None, right[name]) for name, value in served(place).items()), where
    assert any(path in line or name in line for line in verify(fs, root).problems for name in NAMES), where
    repair(fs, root)
    assert all(value == right[name] for name, value in served(place).items() if value is not None), where
    store = TokenStore.create(url, SPEC, options)
    assert repair(fs, root).as_dict() == {"specs": 0, "fragments": 0, "entries": [], "doubtful": []}, where
    store.refresh()
    todo = store.missing(wanted(*NAMES))["video_id"].to_pylist()
    if todo:
        store.commit(encoded([truth(name) for name in todo]))
    assert served(place) == right, where
    gc(fs, root, now=time.time() + 1e6)
    assert verify(fs, root).problems == [], where
    return len(todo)


def restore(place: Place, whole: dict[str, bytes]) -> None:
    fs, root = open_root(*place)
    for path in set(fs.find(root)) - set(whole):
        fs.rm_file(path)
    for path, content in whole.items():
        fs.pipe_file(path, content)


@pytest.mark.parametrize("kind", ["specs", "index", "tokens"])
def test_any_byte_of_any_file_may_rot(place: Place, kind: str) -> None:
    """A stride through each file, another bit each time; the ends, where magic numbers and lengths stand, byte by byte."""
    filled(place)
    fs, root = open_root(*place)
    whole = {path: fs.cat_file(path) for path in fs.find(root)}
    few = not place[0].startswith("/")
    for path in [path for path in whole if f"/{kind}/" in path]:
        length = len(whole[path])
        footer = length - 8 - int.from_bytes(whole[path][-8:-4], "little")
        spots = set(np.linspace(0, length - 1, 4 if few else 40).astype(int).tolist())
        spots |= set() if few else set(range(length - 8, length))
        for number, at in enumerate(sorted(spots)):
            encoded_again = rot(place, path, whole, at, number % 8)
            restore(place, whole)
            if kind == "specs":
                assert encoded_again == 0
            if kind == "tokens":  # a footer costs nothing: the index knows where entries lie
                assert encoded_again <= (1 if at < footer else 0), f"{path} byte {at}"


def test_a_shard_whose_footer_is_gone_costs_nothing(place: Place) -> None:
    """Cut off, zeroed, or another's: each entry is served, named as whole, and moved to a shard that is."""
    filled(place)
    fs, root = open_root(*place)
    whole = {path: fs.cat_file(path) for path in fs.find(root)}
    right = {name: truth(name)["features"] for name in NAMES}
    shards = sorted(path for path in whole if "/tokens/" in path)
    footers = {path: footer_of(whole[path]) for path in shards}
    for path, other in zip(shards, reversed(shards), strict=True):
        start = len(whole[path]) - len(footers[path])
        for end in (b"", bytes(len(footers[path])), footers[other][::-1], whole[other][-len(footers[other]) :][1:]):
            fs.pipe_file(path, whole[path][:start] + end)
            assert served(place) == right
            found = verify(fs, root)
            assert (found.damaged, len(found.changed_shards), found.entries) == ([], 1, 5)
            assert repair(fs, root).entries == []
            store = TokenStore.open(place[0], storage_options=place[1])
            assert store.missing(wanted(*NAMES)).num_rows == 0
            assert served(place) == right
            gc(fs, root, now=time.time() + 1e6)
            assert verify(fs, root).problems == []
            restore(place, whole)


def footer_of(content: bytes) -> bytes:
    """The footer of a Parquet file, with the length and the magic number that end it."""
    return content[len(content) - 8 - int.from_bytes(content[-8:-4], "little") :]
