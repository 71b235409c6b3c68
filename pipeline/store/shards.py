"""Shards: immutable Parquet files of entries, one row group each, named by their content.

Any Parquet reader opens them: features and the other token columns are plain little-endian bytes with shape and dtype
beside them. Pages carry checksums, and every entry a digest of its own that is checked on each read. An entry is read from its
own bytes, which the index points to; the footer is asked only where these are not as `page_reader` knows them.
"""

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import StoreError
from pipeline.schema import ENTRY
from pipeline.storage.filesystem import create_exclusive, is_local, read_bytes, renew, size_of
from pipeline.storage.parquet_io import open_parquet
from pipeline.store.entries import EXTRAS, Entry, entry_of, payload_digest
from pipeline.store.page_reader import LISTS, REQUIRED, SPARE_BYTES, most_unpacked, parse_row

TAIL_BYTES = 1 << 16
SPARE_BYTES_PER_ENTRY = 1 << 14
"""Room for the footer and page headers of a shard; an entry's metadata takes about 2 KB."""
MAGIC = b"PAR1"
DAMAGE = (pa.ArrowException, OSError, KeyError, IndexError, ValueError, TypeError, OverflowError, struct.error)
"""What comes of reading a file in which any byte may have changed: a footer may turn lists to numbers and names to noise."""
LEAST_BYTES = 100
"""No entry is smaller: page headers alone take more."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an entry lies."""

    shard: str
    """Path of the shard."""
    row_group: int
    offset: int
    length: int
    payload_sha256: str

    def __post_init__(self) -> None:
        """Raise StoreError for what an index should never say: it may come from another hand."""
        numbers = (self.row_group, self.offset, self.length)
        absent = None in (*numbers, self.payload_sha256)
        if absent or min(numbers) < 0 or self.length < 1 or self.offset < len(MAGIC) + LEAST_BYTES * self.row_group:
            where = f"row group {self.row_group}, {self.length} bytes at {self.offset}"
            raise StoreError(f"{self.shard}: no entry can lie in {where}")


def write_shard(entries: pa.Table) -> memoryview:
    """Return the file of a shard from rows of `schema.ENTRY`; equal rows give equal bytes."""
    entries = entries.drop_columns([name for name in EXTRAS if entries[name].null_count == entries.num_rows])
    space = pa.allocate_buffer(entries.nbytes + SPARE_BYTES + entries.num_rows * SPARE_BYTES_PER_ENTRY)
    sink = pa.FixedSizeBufferWriter(space)  # a growing buffer would be copied again and again
    compression = {name: "NONE" if name == "features" else "ZSTD" for name in _leaves(entries.schema)}
    with pq.ParquetWriter(
        sink, entries.schema, compression=compression, use_dictionary=False, write_statistics=False, write_page_checksum=True
    ) as writer:
        writer.write_table(entries.combine_chunks(), row_group_size=1)
        writer.close()
        return memoryview(space).cast("B")[: sink.tell()]  # as signed bytes, it would equal no bytes above 127


def _leaves(schema: pa.Schema) -> list[str]:
    return [f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name for field in schema]


def row_group_spans(metadata: Any) -> list[tuple[int, int]]:
    """Return offset and length of each row group. Any: pyarrow's metadata is untyped."""
    spans = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = [group.column(at) for at in range(group.num_columns)]
        start = min(column.dictionary_page_offset or column.data_page_offset for column in columns)
        end = max((c.dictionary_page_offset or c.data_page_offset) + c.total_compressed_size for c in columns)
        spans.append((start, end - start))
    return spans


def read_footer(fs: Any, path: str, size: int | None = None) -> Any:
    """Return a shard's metadata, read from its end in one or two ranges. Raises StoreError."""
    size = size_of(fs, path) if size is None else size
    if size < 12:
        raise StoreError(f"{path}: {size} bytes are too few for a Parquet file")
    tail = read_bytes(fs, path, max(0, size - TAIL_BYTES), size)
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if tail[-4:] != MAGIC or length > size:
        raise StoreError(f"{path}: not a Parquet file")
    if length > len(tail):
        tail = read_bytes(fs, path, size - length, size)
    return parse_footer(tail, path)


def parse_footer(tail: bytes | memoryview, path: str) -> Any:
    """Return a shard's metadata from its last bytes, or all of them. Raises StoreError."""
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if tail[-4:] != MAGIC or length > len(tail):
        raise StoreError(f"{path}: not a Parquet file")
    try:
        return pq.read_metadata(BytesIO(MAGIC + tail[-length:]))
    except DAMAGE as error:
        raise StoreError(f"{path}: the footer is damaged: {error}") from error


class ShardReader:
    """Reads entries by range, one request each; footers are read where they are needed, and kept."""

    def __init__(self, fs: Any, footers: int = 64) -> None:
        self.fs = fs
        self.footer = lru_cache(maxsize=footers)(lambda path: read_footer(fs, path))

    def read(self, place: Place) -> Entry:
        """Return one entry. Raises StoreError if a byte of it is not what was committed."""
        return entry_of(self.row(place), place.shard)

    def row(self, place: Place) -> dict[str, Any]:
        """Return one row of `schema.ENTRY`, checked as `read` does."""
        try:
            return self._row(place)
        except StoreError:
            if is_local(self.fs):
                raise
            return self._row(place)  # what rotted comes again as it is, a wrong answer does not

    def _row(self, place: Place) -> dict[str, Any]:
        content = read_bytes(self.fs, place.shard, place.offset, place.offset + place.length)
        return decode_row(place, content, lambda: self.footer(place.shard))


def write_entries(fs: Any, folder: str, entries: pa.Table) -> list[dict[str, Any]]:
    """Write rows of `schema.ENTRY` as one shard, read its end back, and return where each entry lies.

    Raises StoreError if what was written is not what is there, and a second time neither.
    """
    content = write_shard(entries)
    shard = hashlib.sha256(content).hexdigest()
    path = f"{folder}/{shard}.parquet"
    if not create_exclusive(fs, path, content):
        renew(fs, path, content)
    if not _reads_back(fs, path, content):
        renew(fs, path, content)
        if not _reads_back(fs, path, content):
            raise StoreError(f"{path}: the shard was written twice, and what storage returns is not what was written")
    return [
        {"shard": shard, "row_group": number, "offset": offset, "length": length}
        for number, (offset, length) in enumerate(row_group_spans(parse_footer(content, path)))
    ]


def _reads_back(fs: Any, path: str, content: memoryview) -> bool:
    """Tell whether the end of a shard, its footer above all, is what was written."""
    start = max(0, len(content) - TAIL_BYTES)
    return read_bytes(fs, path, start, len(content)) == content[start:]


def decode_row(place: Place, content: bytes, footer: Callable[[], Any]) -> dict[str, Any]:
    """Return the checked row of `schema.ENTRY` whose row group has these bytes. Any: values, and pyarrow's metadata.

    `footer` is asked for the shard's metadata only where the bytes alone do not give what was committed. Raises StoreError.
    """
    try:
        return _checked(place, parse_row(content, place.shard))
    except StoreError as error:
        try:
            metadata = footer()
        except StoreError:
            raise error from None  # what is wrong with the entry says more
    _check_place(place, metadata)
    return _checked(place, _row_by_footer(place, content, metadata))


def _checked(place: Place, row: dict[str, Any]) -> dict[str, Any]:
    """Return a row if it is what was committed. Raises StoreError."""
    try:
        lost = any(row[name] is None for name in REQUIRED) or any(None in row[name] for name in LISTS)
        digest = None if lost else payload_digest(row)
    except DAMAGE as error:
        raise StoreError(f"{place.shard}: row group {place.row_group} is damaged: {error}") from error
    if digest != place.payload_sha256:
        raise StoreError(f"{place.shard}: row group {place.row_group} is not what was committed (payload digest differs)")
    return row


def _check_place(place: Place, metadata: Any) -> None:
    """Raise StoreError unless an entry's range and its size in memory can be. Any: pyarrow's metadata is untyped.

    Only plain numbers of the footer are looked at: pyarrow 26.0 ends the process on a damaged column of one.
    """
    if place.row_group >= metadata.num_row_groups:
        raise StoreError(f"{place.shard}: no row group {place.row_group}, there are {metadata.num_row_groups}")
    unpacked = metadata.row_group(place.row_group).total_byte_size
    if not 0 <= unpacked <= most_unpacked(place.length):
        raise StoreError(f"{place.shard}: row group {place.row_group} would take {unpacked} bytes, from {place.length}")


def _row_by_footer(place: Place, content: bytes, metadata: Any) -> dict[str, Any]:
    """Return the row as pyarrow reads it. Any: pyarrow's metadata is untyped."""
    try:
        window = pa.PythonFile(_Window(content, place.offset), mode="r")
        table = open_parquet(window, metadata).read_row_group(place.row_group, use_threads=False)
        if table.num_rows != 1:
            raise StoreError(f"{place.shard}: row group {place.row_group} has {table.num_rows} rows, expected 1")
        held = set(table.column_names)
        return {name: _value(table[name][0]) for name in ENTRY.names if name in held or name in REQUIRED}
    except DAMAGE as error:
        raise StoreError(f"{place.shard}: row group {place.row_group} is damaged: {error}") from error


def _value(scalar: Any) -> Any:
    """Return a column's value; bytes without a copy. Any: pyarrow's scalars are untyped."""
    return memoryview(scalar.as_buffer()) if pa.types.is_large_binary(scalar.type) and scalar.is_valid else scalar.as_py()


class _Window:
    """A file of which only one range is at hand."""

    def __init__(self, content: bytes, offset: int) -> None:
        self.content, self.offset, self.at, self.closed = memoryview(content), offset, offset, False

    def read(self, count: int = -1) -> memoryview:
        start = self.at - self.offset
        end = len(self.content) if count < 0 else start + count
        if start < 0 or end > len(self.content):
            raise OSError("the footer points outside the entry's range")
        self.at += end - start
        return self.content[start:end]

    def seek(self, place: int, whence: int = 0) -> int:
        self.at = place if whence == 0 else self.at + place if whence == 1 else self.offset + len(self.content) + place
        return self.at

    def tell(self) -> int:
        return self.at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def flush(self) -> None:
        return None

    def close(self) -> None:
        self.closed = True
