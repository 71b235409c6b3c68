"""Keep a token store healthy: repair damage, merge small files, remove unused ones, clear failures.

All may run beside readers and writers. Nothing is changed in place: repair and compaction write new files first, and shards
are removed only when nothing names them and they are older than a grace period, so that a unit between its shard and its
fragment is never touched.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

import pyarrow as pa

from pipeline.errors import StoreError
from pipeline.schema import ENTRY
from pipeline.storage.filesystem import list_files, read_bytes
from pipeline.storage.parquet_io import open_parquet
from pipeline.store.index import Index, parse_fragment
from pipeline.store.shards import write_entries
from pipeline.store.specs import fingerprints, read_spec
from pipeline.store.token_store import TokenStore
from pipeline.store.verify import Verified, verify

GRACE_S = 24 * 3600.0
"""Longer than any unit takes from its shard to its fragment."""
ENTRIES_PER_SHARD = 512
ROWS_PER_FRAGMENT = 4096
"""Of a compacted index: what one rotten fragment may cost."""
Where = tuple[str, int]
"""Shard and row group of an entry; videos of the same content share one."""
Held = set[tuple[str, str | None]]
"""Ids with the payload digests of their entries, None where that is not known."""


@dataclass(kw_only=True)
class Repaired:
    """What was taken out so that the next encode puts it back."""

    specs: int = 0
    fragments: int = 0
    entries: list[str] = field(default_factory=list)
    """Videos whose entry was damaged: the next `framefold encode` encodes them again."""
    doubtful: list[str] = field(default_factory=list)
    """Videos that a rotten fragment spoke of and of which another entry is there: encoded again, not served stale."""

    def as_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return asdict(self)


def repair(fs: Any, root: str) -> Repaired:
    """Take damaged specs, fragments and entries out, so that encoding again brings back exactly them. Any: fsspec.

    Healthy entries of a shard in which any byte changed are moved to a new one. What only a rotten fragment listed is missing
    afterwards. Where its ids can be read no more, the entries of unnamed shards stand for them.
    """
    report = Repaired()
    for name in fingerprints(fs, root):
        if _is_damaged(partial(read_spec, fs, root, name)):
            _remove(fs, [f"{root}/specs/{name}.json"])
            report.specs += 1
            continue
        paths = list_files(fs, f"{root}/index/{name}", ".parquet")
        rotten = [path for path in paths if _is_damaged(partial(_check_fragment, fs, path))]
        listed = [_held(fs, path) for path in rotten]
        report.fragments += len(rotten)
        found = verify(fs, root, name)
        report.entries += found.damaged
        _remove(fs, rotten)
        store = TokenStore(fs, root, read_spec(fs, root, name))
        held = Held().union(*(_unnamed(store) if one is None else one for one in listed))
        now = store.payloads()
        doubtful = {video_id for video_id, payload in held if video_id in now and now[video_id] != payload}
        report.doubtful += _withdraw(store, found, doubtful)
    return report


def _check_fragment(fs: Any, path: str) -> None:
    parse_fragment(path, read_bytes(fs, path))


def _is_damaged(check: Callable[[], object]) -> bool:
    try:
        check()
    except StoreError:
        return True
    return False


def _unnamed(store: TokenStore) -> Held:
    """Return what is in shards that no row names: a lost fragment may have listed it."""
    named = {f"{store.tokens}/{shard}.parquet" for shard in _named(store.index)}
    unnamed = [path for path in list_files(store.fs, store.tokens, ".parquet") if path not in named]
    return {one for path in unnamed for one in _held(store.fs, path) or ()}


def _held(fs: Any, path: str) -> Held | None:
    """Return what a file speaks of in which a byte may have changed, None where the ids may be what changed."""
    ids = _column(fs, path, "video_id")
    return None if ids is None else set(zip(ids, _column(fs, path, "payload_sha256") or [None] * len(ids), strict=True))


def _column(fs: Any, path: str, name: str) -> list[Any] | None:
    """Return a column of a Parquet file if its checksums hold. Any: of whatever type."""
    try:
        content = open_parquet(pa.BufferReader(read_bytes(fs, path)))
        values: list[Any] = content.read(columns=[name], use_threads=False)[name].to_pylist()
    except (pa.ArrowException, StoreError, OSError, ValueError, KeyError, IndexError, OverflowError, MemoryError):
        return None
    return values


def _remove(fs: Any, paths: Collection[str]) -> None:
    """Remove files; one that another process removed meanwhile is no fault."""
    for path in paths:
        try:
            fs.rm_file(path)
        except FileNotFoundError:
            continue


def _withdraw(store: TokenStore, found: Verified, doubtful: set[str]) -> list[str]:
    """In a newer generation, list damaged entries as failed, and healthy ones of changed shards in a new place.

    Returns the videos that are withdrawn for doubt.
    """
    damaged, changed = set(found.damaged), set(found.changed_shards)
    committed = store.index.with_status("committed").to_pylist()
    lost = [row for row in committed if row["video_id"] in damaged | doubtful]
    healthy = [row for row in committed if row["shard"] in changed and row["video_id"] not in damaged | doubtful]
    entries = _read(store, healthy)
    # Before anything is written: what is written anew may have the very content, and so the name, that rotted.
    _remove(store.fs, [f"{store.tokens}/{shard}.parquet" for shard in sorted(changed)])
    places = _write(store, entries)
    none = dict.fromkeys(("shard", "row_group", "offset", "length", "tokens", "payload_bytes", "payload_sha256", "stored_id"))
    failure = {"status": "failed", "error_class": "DAMAGED", "error": "the stored entry was damaged"}
    listed = [*(row | places[_where(row)] for row in healthy), *(row | none | failure for row in lost)]
    if listed:
        store.index.append([row | {"generation": row["generation"] + 1} for row in listed])
    return [row["video_id"] for row in lost if row["video_id"] not in damaged]


def clear(store: TokenStore, classes: Collection[str]) -> dict[str, int]:
    """List failures of some classes anew without what is known of their source, so that the next encode takes them up.

    They stay failures until then. Clearing twice is clearing once. Returns how many were cleared, by class.
    """
    failed = store.index.with_status("failed")
    rows = [row for row in failed.to_pylist() if row["error_class"] in classes and row["source_hint"] is not None]
    if rows:
        store.index.append([row | {"source_hint": None, "generation": row["generation"] + 1} for row in rows])
        store.refresh()
    counts = dict.fromkeys(sorted(classes), 0)
    for row in rows:
        counts[row["error_class"]] += 1
    return counts


def gc(fs: Any, root: str, grace_s: float = GRACE_S, drop: str | None = None, now: float | None = None) -> dict[str, int]:
    """Remove what is out of use and older than a grace period, and all of a fingerprint to `drop`.

    Out of use are shards that no true row names and what killed writers left half written. Returns how many files and bytes
    went. `now` is the time to judge age by, in seconds since 1970.
    """
    now = time.time() if now is None else now
    gone: list[int] = []
    for name in fingerprints(fs, root):
        folders = [f"{root}/index/{name}", f"{root}/tokens/{name}"]
        dropped = bool(drop) and name.startswith(drop or "")
        found = {path: size for folder in folders for path, size in list_files(fs, folder, "").items()}
        kept = set() if dropped else _in_use(fs, root, name)
        for path in sorted(found.keys() - kept):
            if dropped or _is_old(fs, path, now - grace_s):
                _remove(fs, [path])
                gone.append(found[path])
        if dropped:  # last, so that an interrupted removal can be taken up
            gone += list_files(fs, f"{root}/specs", f"{name}.json").values()
            _remove(fs, [f"{root}/specs/{name}.json"])
    return {"files": len(gone), "bytes": sum(gone)}


def _in_use(fs: Any, root: str, name: str) -> set[str]:
    """Return the shards that true rows name, and all fragments; asked after a listing, what it shows may be named by now.

    A listing is not of one moment: beside compaction it may miss a merged fragment, which was not there yet, and those that
    went into it, which were gone. So it is taken again until none has gone meanwhile.
    """
    index, seen = Index(fs, f"{root}/index/{name}"), {""}
    while not seen <= index.read:
        seen = set(index.read)
        index.refresh()
    shards = {f"{root}/tokens/{name}/{shard}.parquet" for shard in _named(index)}
    return shards | set(list_files(fs, index.folder, ".parquet"))


def _named(index: Index) -> set[str]:
    return set(index.with_status("committed")["shard"].to_pylist())


def _is_old(fs: Any, path: str, before: float) -> bool:
    """Tell whether a file was last changed before some time, asked at the last moment: a writer may just have renewed it."""
    try:
        fs.invalidate_cache(path.rsplit("/", 1)[0])
        return _changed(fs.info(path)) < before
    except FileNotFoundError:
        return False


def _changed(info: Mapping[str, Any]) -> float:
    """Return when an object was last changed, in seconds since 1970; now, where storage does not say."""
    for name in ("mtime", "LastModified", "last_modified", "updated", "created"):
        value = info.get(name)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return time.time()


def compact(store: TokenStore, entries_per_shard: int = ENTRIES_PER_SHARD) -> dict[str, int]:
    """Merge small shards, and all fragments into few. Returns how many of each there were and are.

    Old fragments are removed once the new ones are there; old shards stay for readers until `gc` finds them out of use.
    """
    before = list_files(store.fs, store.index.folder, ".parquet")
    rows = store.index.rows
    small = _small(store.index.with_status("committed"), entries_per_shard)
    if len(before) <= max(1, -(-rows.num_rows // ROWS_PER_FRAGMENT)) and not small:
        return {"fragments_before": len(before), "fragments": len(before), "shards_written": 0}
    places: dict[Where, dict[str, Any]] = {}
    for start in range(0, len(small), entries_per_shard):
        places |= _write(store, _read(store, small[start : start + entries_per_shard]))
    merged = set()
    for part in _parts(rows, ROWS_PER_FRAGMENT):
        listed = [row | places.get(_where(row), {}) for row in part.to_pylist()]
        store.index.append(listed)
        merged.add(store.index.path(listed))
    _remove(store.fs, (set(before) & store.index.read) - merged)
    count = len(list_files(store.fs, store.index.folder, ".parquet"))
    written = len({place["shard"] for place in places.values()})
    return {"fragments_before": len(before), "fragments": count, "shards_written": written}


def _where(row: Mapping[str, Any]) -> Where:
    return row["shard"], row["row_group"]


def _small(committed: pa.Table, entries_per_shard: int) -> list[dict[str, Any]]:
    """Return a row for each entry whose shard holds at most half as many as it could, if that is more than one shard."""
    first: dict[Where, dict[str, Any]] = {}
    for row in committed.to_pylist():
        first.setdefault(_where(row), row)
    counts = Counter(shard for shard, _ in first)
    few = {shard for shard, count in counts.items() if count <= entries_per_shard // 2}
    return [row for (shard, _), row in first.items() if shard in few] if len(few) > 1 else []


def _parts(rows: pa.Table, size: int) -> Iterator[pa.Table]:
    return (rows.slice(start, size) for start in range(0, rows.num_rows, size))


def _read(store: TokenStore, rows: list[dict[str, Any]]) -> dict[Where, dict[str, Any]]:
    """Return the entries that some rows of the index name, each once, rows of `schema.ENTRY`. Raises StoreError."""
    return {where: store.read_row(row) for where, row in {_where(row): row for row in rows}.items()}


def _write(store: TokenStore, entries: Mapping[Where, Mapping[str, Any]]) -> dict[Where, dict[str, Any]]:
    """Write entries as one shard; returns the new place of each."""
    if not entries:
        return {}
    rows = [{name: entry.get(name) for name in ENTRY.names} for entry in entries.values()]
    places = write_entries(store.fs, store.tokens, pa.Table.from_pylist(rows, schema=ENTRY))
    return dict(zip(entries, places, strict=True))
