"""What SECURITY.md promises of numbers, tried: a store whose digests all agree and whose numbers lie is refused."""

import hashlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.errors import StoreError
from pipeline.schema import ENTRY, INDEX
from pipeline.storage.filesystem import create_exclusive
from pipeline.store.entries import payload_digest
from pipeline.store.index import fragment
from pipeline.store.shards import read_footer, row_group_spans, write_entries
from pipeline.store.token_store import TokenStore
from tests.tables import SPEC, row

MOST = 2**31 - 1
ORDERED = {"rank": bytes(12), "parent": bytes(12), "link": bytes(6), "weight": bytes(24), "gain": bytes(24),
           "owner": bytes(2 * 8 * 16 * 16)}  # fmt: skip
ENTRIES: dict[str, dict[str, Any]] = {
    "a shape too large to multiply": {"shape": [MOST, MOST]},
    "a shape too large to hold": {"shape": [MOST, 4]},
    "a negative shape": {"shape": [-1, 4]},
    "two negatives that multiply to the right size": {"shape": [-6, -4]},
    "no tokens of a negative width": {**dict.fromkeys(("features", "frame", "anchor", "kind", "size", "position"), b""),
                                      "shape": [0, -4]},
    "a shape of one number": {"shape": [24]},
    "a shape of three numbers": {"shape": [6, 4, 1]},
    "a shape of none": {"shape": [None, 4]},
    "no shape": {"shape": []},
    "a shape that claims less": {"shape": [5, 4]},
    "a grid larger than anchors reach": {"grid": [MOST, MOST, MOST]},
    "a negative grid": {"grid": [-8, -16, 16]},
    "a grid of none": {"grid": [None, 16, 16]},
    "no grid": {"grid": []},
    "times of none": {"timestamps_s": [None]},
    "an object dtype": {"dtype": "object"},
    "a wider dtype": {"dtype": "float64"},
    "int8 without scales": {"dtype": "int8", "features": bytes(24)},
    "int8 with too few scales": {"dtype": "int8", "features": bytes(24), "scale": bytes(20)},
    "short features": {"features": bytes(46)},
    "odd features": {"features": bytes(47)},
    "long features": {"features": bytes(4800)},
    "short positions": {"position": bytes(71)},
    "another video's name": {"video_id": "b"},
    "half an order": {"rank": bytes(12)},
    "an order without owners": {**ORDERED, "owner": b""},
    "an order with a short column": {**ORDERED, "parent": bytes(10)},
    "an order without gains": {name: value for name, value in ORDERED.items() if name != "gain"},
    "half a joint space": {"clip_space": bytes(7), "clip_scale": bytes(24)},
    "a joint space without scales": {"clip_space": bytes(12)},
    "a joint space with too few scales": {"clip_space": bytes(12), "clip_scale": bytes(20)},
    "300 MB of zeros, packed": {"kind": bytes(300 << 20)},
}  # fmt: skip


def hostile(root: str, **changes: Any) -> TokenStore:
    """Write a store by hand whose digests all agree and whose one entry lies."""
    store = TokenStore.create(root, SPEC)
    entry = {name: row("a").get(name) for name in ENTRY.names} | changes
    try:
        entry["payload_sha256"] = payload_digest(entry)
    except Exception:  # numbers that are none have no digest of ours
        entry["payload_sha256"] = "0" * 64
    (place,) = write_entries(store.fs, store.tokens, pa.Table.from_pylist([entry], schema=ENTRY))
    return listed(store, **place, payload_sha256=entry["payload_sha256"])


def listed(store: TokenStore, **changes: Any) -> TokenStore:
    """Commit a row of the index by hand."""
    base = {name: row("a").get(name) for name in INDEX.names}
    base |= {"status": "committed", "tokens": 6, "payload_bytes": 48, "generation": 1, "stored_id": None}
    content = fragment([{name: {**base, **changes}.get(name) for name in INDEX.names}])
    create_exclusive(store.fs, f"{store.index.folder}/{hashlib.sha256(content).hexdigest()}.parquet", content)
    return store


@pytest.fixture
def little_memory() -> Iterator[None]:
    """No more than 256 MB above what this process holds: a giant allocation fails and is seen."""
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (pages * os.sysconf("SC_PAGE_SIZE") + (256 << 20), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, before)


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_that_lies_is_refused(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Every digest is right, for who can write a store can compute them; the numbers are checked all the same."""
    hostile(str(tmp_path), **ENTRIES[name])
    request.getfixturevalue("little_memory")
    with pytest.raises(StoreError):
        TokenStore.open(str(tmp_path)).read("a")


TRUTHS: dict[str, dict[str, Any]] = {
    "plain": {}, "int8": {"dtype": "int8", "features": bytes(24), "scale": bytes(24)}, "order": ORDERED,
    "joint space": {"clip_space": bytes(12), "clip_scale": bytes(24)},
}  # fmt: skip


@pytest.mark.parametrize("name", TRUTHS)
def test_the_same_store_without_a_lie_is_read(name: str, tmp_path: Path) -> None:
    """So it is the lie that is refused."""
    hostile(str(tmp_path), **TRUTHS[name])
    assert TokenStore.open(str(tmp_path)).read("a").features.shape == (6, 4)


ROWS: dict[str, dict[str, Any]] = {
    "a shard outside the root": {"shard": "../../../outside"},
    "an absolute shard": {"shard": "/etc/passwd"},
    "a shard with a newline": {"shard": "0" * 64 + "\n"},
    "no shard": {"shard": None},
    "no place": {"offset": None},
    "a negative offset": {"offset": -4},
    "an offset beyond the file": {"offset": 2**62},
    "a negative length": {"length": -1},
    "a length that nothing has": {"length": 2**62},
    "a length of 20 GB": {"length": 20 << 30},
    "a row group that is not there": {"row_group": MOST},
    "a negative row group": {"row_group": -1},
    "no digest": {"payload_sha256": None},
    "another status": {"status": "trusted"},
    "no generation": {"generation": None},
    "negative tokens": {"tokens": -1},
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.usefixtures("little_memory")
def test_a_row_of_the_index_that_lies_is_refused(name: str, tmp_path: Path) -> None:
    """When the store is opened, or when the entry is read; no file beside the store's is opened for it."""
    (tmp_path / "outside.parquet").write_bytes(b"PAR1 not for you PAR1")
    store = TokenStore.create(str(tmp_path / "a" / "store"), SPEC)
    entry = {name: row("a").get(name) for name in ENTRY.names}
    entry["payload_sha256"] = payload_digest(entry)
    (place,) = write_entries(store.fs, store.tokens, pa.Table.from_pylist([entry], schema=ENTRY))
    listed(store, **{**place, "payload_sha256": entry["payload_sha256"], **ROWS[name]})
    with pytest.raises(StoreError) as caught:
        TokenStore.open(str(tmp_path / "a" / "store")).read("a")
    assert "not for you" not in str(caught.value)


@pytest.mark.parametrize("name", ["a shard outside the root", "an absolute shard", "a shard with a newline"])
def test_a_shard_named_by_anything_but_a_digest_is_never_looked_for(name: str, tmp_path: Path) -> None:
    """The store does not even open: a shard's name becomes part of a path."""
    place = {"row_group": 0, "offset": 4, "length": 9, "payload_sha256": "0" * 64}
    listed(TokenStore.create(str(tmp_path), SPEC), **place, **ROWS[name])
    with pytest.raises(StoreError, match="named by digests"):
        TokenStore.open(str(tmp_path))


def test_a_footer_that_claims_more_than_the_file_is_refused(tmp_path: Path) -> None:
    """Spans of a footer are checked against what storage has, and against the index."""
    store = hostile(str(tmp_path))
    (shard,) = (tmp_path / "tokens").rglob("*.parquet")
    ((start, length),) = row_group_spans(read_footer(store.fs, str(shard)))
    content = shard.read_bytes()
    shard.write_bytes(content[: start + length // 2] + content[start + length :])
    with pytest.raises(StoreError):
        TokenStore.open(str(tmp_path)).read("a")


@pytest.mark.parametrize("length", [2**32 - 1, 2**31, "one more than there is"])
def test_a_footer_longer_than_the_file_is_refused(length: int | str, tmp_path: Path) -> None:
    """Nothing before the beginning of the file is asked for."""
    store = hostile(str(tmp_path))
    (shard,) = (tmp_path / "tokens").rglob("*.parquet")
    content = shard.read_bytes()
    claimed = len(content) - 7 if isinstance(length, str) else length
    shard.write_bytes(content[:-8] + claimed.to_bytes(4, "little") + content[-4:])
    with pytest.raises(StoreError, match="not a Parquet file"):
        read_footer(store.fs, str(shard))
