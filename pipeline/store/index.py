"""The index: small immutable fragments that say which videos are committed where, and which failed and why.

A fragment is named by its content, so the same unit committed twice is one file. Where fragments speak of the same video,
the highest generation is true; within one, a committed row before a failed one, then the lowest shard and row group. The
rule needs no clock and gives every reader the same answer.
"""

import hashlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import StoreError
from pipeline.redaction import redact
from pipeline.schema import INDEX
from pipeline.storage.filesystem import create_exclusive, list_files, read_many
from pipeline.storage.parquet_io import from_parquet, to_parquet
from pipeline.store.compact_index import PackedRows

TRANSIENT = frozenset({"NOT_FOUND", "UNREADABLE", "DAMAGED", "KILLED"})
"""Failures of storage or of the machine rather than of a video: tried again in every run."""
DIGEST = "^[0-9a-f]{64}$"
STATELESS = r'^\{("size":\d+)?\}$'
"""Source hints that many an object may have."""
DISTINCT = frozenset(
    {
        "video_id",
        "uri",
        "source_hint",
        "error",
        "row_group",
        "offset",
        "payload_sha256",
        "source_sha256",
        "source_bytes",
        "stored_id",
    }
)
"""Columns in which a fragment's rows seldom agree."""
RECENT = 4096
"""Rows that are kept beside the packed ones before all are packed again: a commit must not cost a look at every video."""
TRIES = 5
"""How often a listing is taken anew while compaction removes what it lists."""


class Index:
    """The fragments of one fingerprint, read once and kept up to date by `refresh`."""

    def __init__(self, fs: Any, folder: str) -> None:
        self.fs = fs
        self.folder = folder
        self.read: set[str] = set()
        self.packed = PackedRows(INDEX.empty_table())
        self.recent: dict[str, dict[str, Any]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Take in the fragments that were added since. Raises StoreError for one that is not what its name says.

        Where compaction removed some that were read, all that is left is read again.
        """
        present = list_files(self.fs, self.folder, ".parquet")
        if self.read - present.keys():
            self.read, self.packed, self.recent = set(), PackedRows(INDEX.empty_table()), {}
        new = [path for path in present if path not in self.read]
        if new:
            contents = self._contents(new)
            self._take(parse_fragments(contents))
            self.read.update(contents)

    def _contents(self, paths: list[str]) -> dict[str, bytes]:
        """Return the content of fragments; one that compaction removed since it was listed is in the merged one."""
        for _ in range(TRIES):
            try:
                return read_many(self.fs, paths)
            except StoreError:
                present = list_files(self.fs, self.folder, ".parquet")
                if not set(paths) - present.keys():
                    raise
                paths = [path for path in present if path not in self.read]
        return read_many(self.fs, paths)

    def _take(self, rows: pa.Table) -> None:
        """Merge rows in: few go beside the packed ones, many are packed with them."""
        if len(self.recent) + rows.num_rows > RECENT:
            self.packed = PackedRows(resolve(pa.concat_tables([self.rows, rows])))
            self.recent = {}
            return
        for row in rows.to_pylist():
            known = self.get(row["video_id"])
            if known is None or _precedence(row) < _precedence(known):
                self.recent[row["video_id"]] = row

    @property
    def rows(self) -> pa.Table:
        """Return the true row of every video, rows of `schema.INDEX` sorted by video; unpacked anew for each caller."""
        if not self.recent:
            return self.packed.table()
        return resolve(pa.concat_tables([self.packed.table(), pa.Table.from_pylist([*self.recent.values()], schema=INDEX)]))

    def get(self, video_id: str) -> dict[str, Any] | None:
        """Return the true row of a video, or None."""
        return self.recent.get(video_id) or self.packed.get(video_id)

    def with_status(self, status: str) -> pa.Table:
        """Return the rows that are committed, or failed, sorted by video."""
        rows = self.rows
        return rows.filter(pc.equal(rows["status"], status))

    def missing(self, corpus: pa.Table, retry: Collection[str] = ()) -> pa.Table:
        """Return the rows of a corpus that are to be encoded: new, changed, or failed with a class to retry.

        Where storage tells nothing of an object's state but perhaps its size, another URI counts as another video.
        """
        rows = self.rows
        known = rows.take(pc.index_in(corpus["video_id"], value_set=rows["video_id"].combine_chunks()))
        again = pc.is_in(known["error_class"], value_set=pa.array(sorted(TRANSIENT | set(retry))))
        shown = pa.array([redact(uri) for uri in corpus["uri"].to_pylist()], pa.string())  # as it is stored
        moved, changed = pc.not_equal(shown, known["uri"]), pc.not_equal(corpus["source_hint"], known["source_hint"])
        hint = corpus["source_hint"]
        differs = pc.or_(pc.and_(changed, pc.not_equal(hint, "{}")), pc.and_(moved, pc.match_substring_regex(hint, STATELESS)))
        differs = pc.fill_null(differs, True)
        unknown = pc.is_null(known["source_hint"])  # not in the index, or to be looked at again
        return corpus.filter(pc.or_(pc.or_(unknown, again), differs))

    def append(self, rows: list[dict[str, Any]]) -> bool:
        """Commit rows as one fragment. Returns whether it is new."""
        return create_exclusive(self.fs, self.path(rows), fragment(rows))

    def path(self, rows: list[dict[str, Any]]) -> str:
        """Return where the fragment of some rows lies."""
        return f"{self.folder}/{hashlib.sha256(fragment(rows)).hexdigest()}.parquet"


def fragment(rows: list[dict[str, Any]]) -> bytes:
    """Return the file of a fragment; equal rows give equal bytes."""
    table = pa.Table.from_pylist(rows, schema=INDEX).sort_by("video_id")
    return to_parquet(table if table["stored_id"].null_count < len(table) else table.drop_columns("stored_id"), DISTINCT)


def parse_fragment(path: str, content: bytes) -> pa.Table:
    """Return the rows of a fragment. Raises StoreError."""
    return parse_fragments({path: content})


def parse_fragments(contents: Mapping[str, bytes]) -> pa.Table:
    """Return the rows of several fragments by path, looked at together. Raises StoreError that names one that is wrong."""
    tables = [_table(path, content) for path, content in contents.items()]
    rows = pa.concat_tables([INDEX.empty_table(), *tables]).combine_chunks()
    if not _is_well_formed(rows):
        path = next(path for path, table in zip(contents, tables, strict=True) if not _is_well_formed(table))
        raise StoreError(f"{path}: expected rows with a status and a generation, and shards named by digests")
    return rows


def _table(path: str, content: bytes) -> pa.Table:
    """Return the rows of a fragment that is what its name says, whatever they hold. Raises StoreError."""
    name = path.rsplit("/", 1)[-1].removesuffix(".parquet")
    if hashlib.sha256(content).hexdigest() != name:
        raise StoreError(f"{path}: the index fragment was changed after it was committed")
    try:
        found = from_parquet(content)
        if "stored_id" not in found.column_names:
            found = found.append_column(INDEX.field("stored_id"), pa.nulls(len(found), pa.string()))
        return found if found.schema.equals(INDEX) else found.select(INDEX.names).cast(INDEX)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise StoreError(f"{path}: not an index fragment of this version: {error}") from error


def _is_well_formed(rows: pa.Table) -> bool:
    """Tell whether rows can be ordered, and name shards by digests: a shard's name becomes part of a path."""
    good = pc.and_(pc.is_valid(rows["video_id"]), pc.is_valid(rows["generation"]))
    good = pc.and_(good, pc.is_in(rows["status"], value_set=pa.array(["committed", "failed"])))
    good = pc.and_(good, pc.fill_null(pc.greater_equal(rows["tokens"], 0), True))
    named = pc.fill_null(pc.match_substring_regex(rows["shard"].unique(), DIGEST), True)
    return all(pc.all(checked, min_count=0).as_py() for checked in (good, named))


ORDER = (
    ("generation", "descending"),
    ("status", "ascending"),  # committed before failed
    ("shard", "ascending"),
    ("row_group", "ascending"),
    ("error", "ascending"),
)
"""Which of several rows of a video is true: the first in this order, null last."""


def _precedence(row: Mapping[str, Any]) -> list[tuple[bool, Any]]:
    """Return the key by which rows of one video sort as `ORDER` has it. Any: a column's value."""
    keys = [-row[name] if order == "descending" and row[name] is not None else row[name] for name, order in ORDER]
    return [(key is None, "" if key is None else key) for key in keys]


def resolve(rows: pa.Table) -> pa.Table:
    """Return one row per video, by `ORDER`, sorted by video."""
    ordered = rows.combine_chunks().sort_by([("video_id", "ascending"), *ORDER])
    names = ordered["video_id"]
    if len(names) < 2:
        return ordered
    first = pc.not_equal(names.slice(1), names.slice(0, len(names) - 1)).combine_chunks()
    return ordered.filter(pa.chunked_array([pa.array([True]), first]))


def rows_of(table: pa.Table) -> Iterator[Mapping[str, Any]]:
    """Yield rows as mappings, without building them all."""
    for batch in table.to_batches(max_chunksize=1024):
        yield from batch.to_pylist()
