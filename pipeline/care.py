"""Keep a token store healthy: repair what rotted, merge what is small, remove what nobody needs.

All three may run beside readers and writers. Nothing is changed in place: repair and compaction write new files first, and
shards are removed only when nothing names them and they are older than a grace period, so that a unit between its shard and
its fragment is never touched.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import StoreError
from pipeline.filesystem import list_files, read_bytes
from pipeline.index import Index, parse_fragment
from pipeline.schema import ENTRY
from pipeline.shards import write_entries
from pipeline.store import TokenStore, fingerprints, read_spec
from pipeline.verify import Verified, verify

GRACE_S = 24 * 3600.0
"""Longer than any unit takes from its shard to its fragment."""
ENTRIES_PER_SHARD = 512


@dataclass(kw_only=True)
class Repaired:
    """What was taken out so that the next encode puts it back."""

    specs: int = 0
    fragments: int = 0
    entries: list[str] = field(default_factory=list)
    """Videos that the next `framefold encode` encodes again."""

    def as_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return asdict(self)


def repair(fs: Any, root: str) -> Repaired:
    """Take damaged specs, fragments and entries out, so that encoding again brings back exactly them. Any: fsspec.

    Healthy entries of a shard in which any byte changed are moved to a new one.
    """
    report = Repaired()
    for name in fingerprints(fs, root):
        paths = list_files(fs, f"{root}/index/{name}", ".parquet")
        rotten = [path for path in paths if _is_damaged(partial(_check_fragment, fs, path))]
        report.fragments += len(rotten)
        if _is_damaged(partial(read_spec, fs, root, name)):
            rotten.append(f"{root}/specs/{name}.json")
            report.specs += 1
        else:
            found = verify(fs, root, name)
            report.entries += found.damaged
            _remove(fs, rotten)
            _withdraw(TokenStore(fs, root, read_spec(fs, root, name)), found)
        _remove(fs, rotten)
    return report


def _check_fragment(fs: Any, path: str) -> None:
    parse_fragment(path, read_bytes(fs, path))


def _is_damaged(check: Callable[[], object]) -> bool:
    try:
        check()
    except StoreError:
        return True
    return False


def _remove(fs: Any, paths: list[str]) -> None:
    for path in paths:
        if fs.exists(path):
            fs.rm_file(path)


def _withdraw(store: TokenStore, found: Verified) -> None:
    """In a newer generation, list damaged entries as failed, and healthy ones of changed shards in a new place."""
    damaged, changed = set(found.damaged), set(found.changed_shards)
    committed = store.index.with_status("committed").to_pylist()
    rows = [row for row in committed if row["shard"] in changed or row["video_id"] in damaged]
    healthy = [row for row in rows if row["video_id"] not in damaged]
    entries = [store.read_row(row) for row in healthy]
    # Before anything is written: what is written anew may have the very content, and so the name, that rotted.
    _remove(store.fs, [f"{store.tokens}/{shard}.parquet" for shard in changed])
    moved = _written(store, healthy, entries) if healthy else []
    lost = dict.fromkeys(("shard", "row_group", "offset", "length", "tokens", "payload_bytes", "payload_sha256"))
    failure = {"status": "failed", "error_class": "DAMAGED", "error": "the stored entry was damaged"}
    listed = [*moved, *({**row, **lost, **failure} for row in rows if row["video_id"] in damaged)]
    if listed:
        store.index.append([{**row, "generation": row["generation"] + 1} for row in listed])


def gc(fs: Any, root: str, grace_s: float = GRACE_S, drop: str | None = None, now: float | None = None) -> dict[str, int]:
    """Remove shards that no true row names and that are older than the grace period; and all of a fingerprint to `drop`.

    Returns how many files and bytes went. `now` is the time to judge age by, in seconds since 1970.
    """
    now = time.time() if now is None else now
    gone: dict[str, int] = {}
    for name in fingerprints(fs, root):
        if drop and name.startswith(drop):
            for folder in (f"{root}/specs", f"{root}/index/{name}", f"{root}/tokens/{name}"):
                gone |= {path: size for path, size in list_files(fs, folder, "").items() if name in path}
            continue
        named = {f"{root}/tokens/{name}/{shard}.parquet" for shard in _named(Index(fs, f"{root}/index/{name}"))}
        shards = list_files(fs, f"{root}/tokens/{name}", ".parquet")
        gone |= {p: size for p, size in shards.items() if p not in named and now - _changed(fs.info(p)) > grace_s}
    for path in gone:
        fs.rm_file(path)
    return {"files": len(gone), "bytes": sum(gone.values())}


def _named(index: Index) -> set[str]:
    return set(index.with_status("committed")["shard"].to_pylist())


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
    """Merge small shards and all fragments into few. Returns how many of each there were and are.

    Old fragments are removed once the new one is there; old shards stay for readers until `gc` finds them out of use.
    """
    before = list_files(store.fs, store.index.folder, ".parquet")
    rows = store.index.rows
    if len(before) < 2:
        return {"fragments_before": len(before), "fragments": len(before), "shards_written": 0}
    committed = store.index.with_status("committed")
    small = _small(committed, entries_per_shard)
    moved = {row["video_id"]: row for part in _parts(small, entries_per_shard) for row in _rewrite(store, part)}
    merged = [moved.get(row["video_id"], row) for row in rows.to_pylist()]
    store.index.append(merged)
    for path in set(before) & store.index.read:
        if path not in _newest(store, merged):
            store.fs.rm_file(path)
    count = len(list_files(store.fs, store.index.folder, ".parquet"))
    return {"fragments_before": len(before), "fragments": count, "shards_written": len({r["shard"] for r in moved.values()})}


def _newest(store: TokenStore, merged: list[dict[str, Any]]) -> set[str]:
    return {store.index.path(merged)}


def _small(committed: pa.Table, entries_per_shard: int) -> pa.Table:
    """Return the rows whose shard holds at most half as many entries as it could, if that is more than one shard."""
    counts = committed.group_by("shard").aggregate([("video_id", "count")])
    few = counts.filter(pc.less_equal(counts["video_id_count"], entries_per_shard // 2))["shard"]
    rows = committed.filter(pc.is_in(committed["shard"], few.combine_chunks()))
    return rows if len(few) > 1 else rows.slice(0, 0)


def _parts(rows: pa.Table, size: int) -> Iterator[pa.Table]:
    return (rows.slice(start, size) for start in range(0, rows.num_rows, size))


def _rewrite(store: TokenStore, rows: pa.Table) -> list[dict[str, Any]]:
    """Write the entries of some rows into one shard; returns the rows with their new places. Raises StoreError."""
    listed = rows.to_pylist()
    return _written(store, listed, [store.read_row(row) for row in listed])


def _written(store: TokenStore, rows: list[dict[str, Any]], entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    places = write_entries(store.fs, store.tokens, pa.Table.from_pylist(entries, schema=ENTRY))
    return [{**row, **place} for row, place in zip(rows, places, strict=True)]
