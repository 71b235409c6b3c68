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
from pipeline.filesystem import create_exclusive, list_files, read_many
from pipeline.parquet import from_parquet, to_parquet
from pipeline.redaction import redact
from pipeline.schema import CORPUS, INDEX

TRANSIENT = frozenset({"NOT_FOUND", "UNREADABLE", "DAMAGED", "KILLED"})
"""Failures of storage or of the machine rather than of a video: tried again in every run."""


class Index:
    """The fragments of one fingerprint, read once and kept up to date by `refresh`."""

    def __init__(self, fs: Any, folder: str) -> None:
        self.fs = fs
        self.folder = folder
        self.read: set[str] = set()
        self.rows = INDEX.empty_table()
        self.at: dict[str, int] = {}
        self.refresh()

    def refresh(self) -> None:
        """Take in the fragments that were added since. Raises StoreError for one that is not what its name says.

        Where compaction removed some that were read, all that is left is read again.
        """
        present = list_files(self.fs, self.folder, ".parquet")
        if self.read - present.keys():
            self.read, self.rows, self.at = set(), INDEX.empty_table(), {}
        new = [path for path in present if path not in self.read]
        if new:
            contents = self._contents(new)
            new = list(contents)
            tables = [parse_fragment(path, contents[path]) for path in new]
            self.rows = resolve(pa.concat_tables([self.rows, *tables]))
            self.at = {name: at for at, name in enumerate(self.rows["video_id"].to_pylist())}
            self.read.update(new)

    def _contents(self, paths: list[str]) -> dict[str, bytes]:
        """Return the content of fragments; one that compaction removed since it was listed is in the merged one."""
        try:
            return read_many(self.fs, paths)
        except StoreError:
            present = list_files(self.fs, self.folder, ".parquet")
            if not set(paths) - present.keys():
                raise
            return read_many(self.fs, [path for path in present if path not in self.read])

    def get(self, video_id: str) -> dict[str, Any] | None:
        """Return the true row of a video, or None."""
        at = self.at.get(video_id)
        return None if at is None else self.rows.slice(at, 1).to_pylist()[0]

    def with_status(self, status: str) -> pa.Table:
        """Return the rows that are committed, or failed, sorted by video."""
        return self.rows.filter(pc.equal(self.rows["status"], status))

    def missing(self, corpus: pa.Table, retry: Collection[str] = ()) -> pa.Table:
        """Return the rows of a corpus that are to be encoded: new, changed, or failed with a class to retry."""
        again = TRANSIENT | set(retry)
        known = {
            name: (uri, hint, error_class)
            for name, uri, hint, error_class in zip(
                *(self.rows[c].to_pylist() for c in ("video_id", "uri", "source_hint", "error_class")), strict=True
            )
        }
        asked = zip(*(corpus[name].to_pylist() for name in CORPUS.names), strict=True)
        keep = [_is_missing(uri, hint, known.get(name), again) for name, uri, hint in asked]
        return corpus.filter(pa.array(keep, pa.bool_()))

    def append(self, rows: list[dict[str, Any]]) -> bool:
        """Commit rows as one fragment. Returns whether it is new."""
        return create_exclusive(self.fs, self.path(rows), fragment(rows))

    def path(self, rows: list[dict[str, Any]]) -> str:
        """Return where the fragment of some rows lies."""
        return f"{self.folder}/{hashlib.sha256(fragment(rows)).hexdigest()}.parquet"


def _is_missing(uri: str, hint: str, known: tuple[str, str, str | None] | None, again: Collection[str]) -> bool:
    """Where storage tells nothing of the object's state, the same URI counts as the same video."""
    if known is None:
        return True
    known_uri, known_hint, error_class = known
    if error_class is not None and error_class in again:
        return True
    return redact(uri) != known_uri if hint == "{}" else hint != known_hint


def fragment(rows: list[dict[str, Any]]) -> bytes:
    """Return the file of a fragment; equal rows give equal bytes."""
    return to_parquet(pa.Table.from_pylist(rows, schema=INDEX).sort_by("video_id"))


def parse_fragment(path: str, content: bytes) -> pa.Table:
    """Return the rows of a fragment. Raises StoreError."""
    name = path.rsplit("/", 1)[-1].removesuffix(".parquet")
    if hashlib.sha256(content).hexdigest() != name:
        raise StoreError(f"{path}: the index fragment was changed after it was committed")
    try:
        return from_parquet(content).select(INDEX.names).cast(INDEX)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise StoreError(f"{path}: not an index fragment of this version: {error}") from error


def resolve(rows: pa.Table) -> pa.Table:
    """Return one row per video, by the rule above, sorted by video."""
    order = [
        ("video_id", "ascending"),
        ("generation", "descending"),
        ("status", "ascending"),  # committed before failed
        ("shard", "ascending"),
        ("row_group", "ascending"),
        ("error", "ascending"),
    ]
    ordered = rows.combine_chunks().sort_by(order)
    names = ordered["video_id"]
    if len(names) < 2:
        return ordered
    first = pc.not_equal(names.slice(1), names.slice(0, len(names) - 1)).combine_chunks()
    return ordered.filter(pa.chunked_array([pa.array([True]), first]))


def rows_of(table: pa.Table) -> Iterator[Mapping[str, Any]]:
    """Yield rows as mappings, without building them all."""
    for batch in table.to_batches(max_chunksize=1024):
        yield from batch.to_pylist()
