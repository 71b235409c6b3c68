"""Check every byte of a token store: specs, fragments, shards and the entries that they name."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.errors import ConfigError, StoreError
from pipeline.schema import INDEX
from pipeline.storage.filesystem import list_files, read_bytes
from pipeline.store.entries import entry_of
from pipeline.store.index import TRIES, parse_fragment, resolve, rows_of
from pipeline.store.shards import Place, decode_row, parse_footer, row_group_spans
from pipeline.store.specs import fingerprints, read_spec


@dataclass(kw_only=True)
class Verified:
    """What was checked and what is wrong."""

    specs: int = 0
    fragments: int = 0
    shards: int = 0
    entries: int = 0
    bytes: int = 0
    orphans: int = 0
    """Shards that no fragment names: left by a crash between two writes, harmless."""
    problems: list[str] = field(default_factory=list)
    """One line per damaged or missing file or entry."""
    damaged: list[str] = field(default_factory=list)
    """Videos whose entry cannot be served."""
    changed_shards: list[str] = field(default_factory=list)
    """Shards whose content is not what their name says; entries of them that are not damaged can still be served."""

    def add(self, other: "Verified") -> None:
        """Take in another report."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def as_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return {"ok": not self.problems, **asdict(self)}


def verify(fs: Any, root: str, only: str | None = None) -> Verified:
    """Check all fingerprints of a store, or one. Never raises for damage: it is in the report. Any: fsspec is untyped.

    Beside compaction and removal: what is gone because it was merged meanwhile is no damage, and is looked at again.
    """
    report = Verified()
    names = [name for name in fingerprints(fs, root) if name.startswith(only or "")]
    if not names:
        raise ConfigError(f"{root}: no token store there (expected specs/<fingerprint>.json)")
    for name in names:
        report.add(_settled(fs, root, name))
    return report


def _settled(fs: Any, root: str, name: str) -> Verified:
    """Check one fingerprint; again where something was wrong while its fragments changed."""
    folder = f"{root}/index/{name}"
    for _ in range(TRIES):
        before, report = list_files(fs, folder, ".parquet"), Verified()
        _check_spec(fs, root, name, report)
        _check_shards(fs, f"{root}/tokens/{name}", _check_fragments(fs, folder, report), report)
        if not report.problems or list_files(fs, folder, ".parquet") == before:
            break
    return report


def _check_spec(fs: Any, root: str, name: str, report: Verified) -> None:
    try:
        read_spec(fs, root, name)
        report.specs += 1
    except (StoreError, ConfigError) as error:
        report.problems.append(str(error))


def _check_fragments(fs: Any, folder: str, report: Verified) -> pa.Table:
    tables = []
    for path in list_files(fs, folder, ".parquet"):
        try:
            tables.append(parse_fragment(path, read_bytes(fs, path)))
            report.fragments += 1
        except StoreError as error:
            report.problems.append(str(error))
    return resolve(pa.concat_tables([INDEX.empty_table(), *tables]))


def _check_shards(fs: Any, folder: str, rows: pa.Table, report: Verified) -> None:
    by_shard: dict[str, list[dict[str, Any]]] = {}
    for row in rows_of(rows):
        if row["status"] == "committed":
            by_shard.setdefault(row["shard"], []).append(dict(row))
    present = list_files(fs, folder, ".parquet")
    found = {path.rsplit("/", 1)[-1].removesuffix(".parquet"): path for path in present}
    for shard, path in found.items():
        report.orphans += shard not in by_shard
        _check_shard(fs, path, shard, by_shard.get(shard, []), report)
    for shard in sorted(by_shard.keys() - found.keys()):
        report.problems.append(f"{folder}/{shard}.parquet: missing, with {len(by_shard[shard])} entries")
        report.damaged += [row["video_id"] for row in by_shard[shard]]


def _check_shard(fs: Any, path: str, shard: str, rows: list[dict[str, Any]], report: Verified) -> None:
    """Check a shard's content against its name and each entry against the index."""
    report.shards += 1
    try:
        content = read_bytes(fs, path)
    except StoreError as error:
        report.problems.append(str(error))
        report.damaged += [row["video_id"] for row in rows]
        return
    report.bytes += len(content)
    spans = None
    try:
        _check_name(path, shard, content, report)
        spans = row_group_spans(parse_footer(content, path))
    except StoreError as error:
        report.problems.append(str(error))
    for row in rows:
        try:
            _check_entry(path, row, content, spans)
            report.entries += 1
        except StoreError as error:
            report.problems.append(f"{row['video_id']}: {error}")
            report.damaged.append(row["video_id"])


def _check_name(path: str, shard: str, content: bytes, report: Verified) -> None:
    """Raise StoreError where any byte of a shard changed."""
    if hashlib.sha256(content).hexdigest() != shard:
        report.changed_shards.append(shard)
        raise StoreError(f"{path}: the shard was changed after it was committed")


def _check_entry(path: str, row: Mapping[str, Any], content: bytes, spans: list[tuple[int, int]] | None) -> None:
    """Check one entry by its own bytes, and its place by the footer of a shard that is whole. Raises StoreError."""
    place = Place(shard=path, **{name: row[name] for name in ("row_group", "offset", "length", "payload_sha256")})
    if spans is not None and (place.offset, place.length) not in spans[place.row_group : place.row_group + 1]:
        raise StoreError(f"{path}: row group {place.row_group} does not lie in {place.length} bytes at {place.offset}")
    part = content[place.offset : place.offset + place.length]
    entry = entry_of(decode_row(place, part, lambda: parse_footer(content, path)), path)
    stored_id = row["stored_id"] or row["video_id"]
    if entry.video_id != stored_id:
        raise StoreError(f"{path}: expected the entry of {stored_id}, got {entry.video_id}")
