"""Shards: immutable Parquet files of entries, one row group each, named by their content.

Any Parquet reader opens them: features and the other token columns are plain little-endian bytes with shape and dtype
beside them. Pages carry checksums, and every entry a digest of its own that is checked on each read.
"""

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import StoreError
from pipeline.filesystem import create_exclusive, read_bytes, renew, size_of
from pipeline.parquet import open_parquet
from pipeline.quantize import from_int8
from pipeline.schema import ENTRY, OPTIONAL

DIGESTED = ("video_id", "features", "shape", "dtype", "frame", "anchor", "kind", "size", "position", "grid")
WIDTHS = {"frame": 2, "anchor": 4, "kind": 1, "size": 4, "position": 12}
"""Bytes per token of each column beside the features."""
EXTRAS = tuple(name for name, _ in OPTIONAL)
ORDER = {"rank": "<i2", "parent": "<i2", "link": "?", "weight": "<f4", "gain": "<f4"}
"""Types of the columns of `StoredOrder` that have one value per token."""
TAIL_BYTES = 1 << 16
SPARE_BYTES, SPARE_BYTES_PER_ENTRY = 1 << 16, 1 << 14
"""Room for the footer and page headers of a shard; an entry's metadata takes about 2 KB."""
MAGIC = b"PAR1"
DAMAGE = (pa.ArrowException, OSError, KeyError, IndexError, ValueError, TypeError, OverflowError, struct.error)
"""What comes of reading a file in which any byte may have changed: a footer may turn lists to numbers and names to noise."""
MOST_PATCHES = 2**31 - 1
"""Of a clip: an anchor is an int32."""
MOST_UNPACKED = 16
"""How many times its stored size an entry may take in memory: features are stored as they are, and outweigh the rest."""


@dataclass(frozen=True, kw_only=True)
class StoredOrder:
    """The order of the tokens of a nested reducer; see `reducers.base.Order`."""

    rank: npt.NDArray[np.int16]
    """(S,)."""
    parent: npt.NDArray[np.int16]
    """(S,)."""
    link: npt.NDArray[np.bool_]
    """(S,)."""
    weight: npt.NDArray[np.float32]
    """(S,)."""
    gain: npt.NDArray[np.float32]
    """(S,)."""
    owner: npt.NDArray[np.int16]
    """(F * N,) place of the token that holds each patch, -1 if dropped."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The stored tokens of one video, checked."""

    video_id: str
    features: npt.NDArray[np.float16]
    """(S, D), before the projector; int8 rows times their scale where they are stored so."""
    frame: npt.NDArray[np.int16]
    """(S,) frame of the clip, -1 where a token stands for several."""
    anchor: npt.NDArray[np.int32]
    """(S,) frame * N + patch, or -1."""
    kind: npt.NDArray[np.uint8]
    """(S,) see `reducers.base`."""
    size: npt.NDArray[np.float32]
    """(S,) how many patches each stands for."""
    position: npt.NDArray[np.float32]
    """(S, 3) frame, row, column."""
    grid: tuple[int, int, int]
    """Frames, rows, columns before the reduction."""
    timestamps_s: tuple[float, ...]
    source_sha256: str
    payload_sha256: str
    order: StoredOrder | None = None
    """What cutting to a smaller budget needs; None if the reducer is not nested."""
    clip_space: npt.NDArray[np.float16] | None = None
    """(S, P) in the joint image-text space, 0 for CLS; None if not asked for while encoding."""


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
        if None in (*numbers, self.payload_sha256) or min(numbers) < 0 or self.offset < len(MAGIC) or self.length < 1:
            where = f"row group {self.row_group}, {self.length} bytes at {self.offset}"
            raise StoreError(f"{self.shard}: no entry can lie in {where}")


def payload_digest(row: Mapping[str, Any]) -> str:
    """Return SHA-256 over an entry's columns, each with its length in front; optional ones with their name as well."""
    digest = hashlib.sha256()
    for name in (*DIGESTED, *(name for name in EXTRAS if row.get(name) is not None)):
        if name in EXTRAS:
            digest.update(name.encode())
        value = row[name]
        if isinstance(value, list):
            value = struct.pack(f"<{len(value)}q", *value)
        content = value.encode() if isinstance(value, str) else value
        digest.update(struct.pack("<q", len(content)))
        digest.update(content)
    times = row["timestamps_s"] or []
    digest.update(struct.pack(f"<q{len(times)}f", len(times), *times))
    return digest.hexdigest()


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
        return memoryview(space)[: sink.tell()]


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
    try:
        return pq.read_metadata(BytesIO(MAGIC + tail[-length:]))
    except DAMAGE as error:
        raise StoreError(f"{path}: the footer is damaged: {error}") from error


class ShardReader:
    """Reads entries by range, one request each; footers are kept."""

    def __init__(self, fs: Any, footers: int = 64) -> None:
        self.fs = fs
        self.footer = lru_cache(maxsize=footers)(lambda path: read_footer(fs, path))

    def read(self, place: Place) -> Entry:
        """Return one entry. Raises StoreError if a byte of it is not what was committed."""
        return entry_of(self.row(place), place.shard)

    def row(self, place: Place) -> dict[str, Any]:
        """Return one row of `schema.ENTRY`, checked as `read` does."""
        metadata = self.footer(place.shard)
        _check_place(place, metadata)
        content = read_bytes(self.fs, place.shard, place.offset, place.offset + place.length)
        return decode_row(place, metadata, content)


def write_entries(fs: Any, folder: str, entries: pa.Table) -> list[dict[str, Any]]:
    """Write rows of `schema.ENTRY` as one shard, read its footer back, and return where each entry lies.

    Raises StoreError if what was written is not what is there.
    """
    content = write_shard(entries)
    shard = hashlib.sha256(content).hexdigest()
    path = f"{folder}/{shard}.parquet"
    if not create_exclusive(fs, path, content):
        renew(fs, path, content)
    spans = row_group_spans(read_footer(fs, path, len(content)))
    if len(spans) != entries.num_rows:
        raise StoreError(f"{path}: expected {entries.num_rows} row groups after writing, got {len(spans)}")
    return [
        {"shard": shard, "row_group": number, "offset": offset, "length": length}
        for number, (offset, length) in enumerate(spans)
    ]


def decode_entry(place: Place, metadata: Any, content: bytes) -> Entry:
    """Return the entry whose row group has these bytes. Any: pyarrow's metadata is untyped."""
    _check_place(place, metadata)
    return entry_of(decode_row(place, metadata, content), place.shard)


def _check_place(place: Place, metadata: Any) -> None:
    """Raise StoreError unless an entry's range and its size in memory can be. Any: pyarrow's metadata is untyped.

    Only plain numbers of the footer are looked at: pyarrow 26.0 ends the process on a damaged column of one.
    """
    if place.row_group >= metadata.num_row_groups:
        raise StoreError(f"{place.shard}: no row group {place.row_group}, there are {metadata.num_row_groups}")
    unpacked = metadata.row_group(place.row_group).total_byte_size
    if not 0 <= unpacked <= SPARE_BYTES + MOST_UNPACKED * place.length:
        raise StoreError(f"{place.shard}: row group {place.row_group} would take {unpacked} bytes, from {place.length}")


def decode_row(place: Place, metadata: Any, content: bytes) -> dict[str, Any]:
    """Return the checked row of `schema.ENTRY` whose row group has these bytes. Any: pyarrow's metadata is untyped."""
    try:
        window = pa.PythonFile(_Window(content, place.offset), mode="r")
        table = open_parquet(window, metadata).read_row_group(place.row_group, use_threads=False)
        if table.num_rows != 1:
            raise StoreError(f"{place.shard}: row group {place.row_group} has {table.num_rows} rows, expected 1")
        held = set(table.column_names)
        row = {name: _value(table[name][0]) for name in ENTRY.names if name in held or name not in EXTRAS}
        lost = any(row[name] is None for name in ENTRY.names if name not in EXTRAS)
        lost = lost or any(None in row[name] for name in ("shape", "grid", "timestamps_s"))
        digest = None if lost else payload_digest(row)
    except DAMAGE as error:
        raise StoreError(f"{place.shard}: row group {place.row_group} is damaged: {error}") from error
    if digest != place.payload_sha256:
        raise StoreError(f"{place.shard}: row group {place.row_group} is not what was committed (payload digest differs)")
    return row


def _value(scalar: Any) -> Any:
    """Return a column's value; bytes without a copy. Any: pyarrow's scalars are untyped."""
    return scalar.as_buffer() if pa.types.is_large_binary(scalar.type) else scalar.as_py()


def entry_of(row: Mapping[str, Any], where: str) -> Entry:
    """Return an entry from a row of `schema.ENTRY`. Raises StoreError unless lengths, shape and dtype agree."""
    shape, grid = row["shape"], row["grid"]
    if row["dtype"] not in ("float16", "int8"):
        raise StoreError(f"{where}: expected dtype float16 or int8, got {row['dtype']!r}")
    if len(shape) != 2 or len(grid) != 3 or min(*shape, *grid) < 0:
        raise StoreError(f"{where}: expected shape [S, D] and grid [F, gh, gw], got {shape} and {grid}")
    if grid[0] * grid[1] * grid[2] > MOST_PATCHES:
        raise StoreError(f"{where}: expected at most {MOST_PATCHES} patches, got a grid of {grid}")
    _check_lengths(row, where)
    return Entry(
        video_id=row["video_id"],
        features=_features(row),
        frame=np.frombuffer(row["frame"], "<i2"),
        anchor=np.frombuffer(row["anchor"], "<i4"),
        kind=np.frombuffer(row["kind"], np.uint8),
        size=np.frombuffer(row["size"], "<f4"),
        position=np.frombuffer(row["position"], "<f4").reshape(-1, 3),
        grid=(grid[0], grid[1], grid[2]),
        timestamps_s=tuple(row["timestamps_s"]),
        source_sha256=row["source_sha256"],
        payload_sha256=row["payload_sha256"],
        order=_order(row),
        clip_space=_clip_space(row),
    )


def _check_lengths(row: Mapping[str, Any], where: str) -> None:
    """Raise StoreError unless every column has the bytes that shape, grid and dtype ask for."""
    tokens, width = row["shape"]
    expected = {"features": tokens * width * (1 if row["dtype"] == "int8" else 2)}
    expected |= {name: tokens * each for name, each in WIDTHS.items()}
    if row["dtype"] == "int8":
        expected["scale"] = 4 * tokens
    if row.get("rank") is not None:
        expected |= {name: tokens * np.dtype(kind).itemsize for name, kind in ORDER.items()}
        expected["owner"] = 2 * row["grid"][0] * row["grid"][1] * row["grid"][2]
    if row.get("clip_space") is not None:
        expected["clip_scale"] = 4 * tokens
        expected["clip_space"] = len(row["clip_space"]) // max(tokens, 1) * tokens
    for name, count in expected.items():
        found = row.get(name)
        if found is None or len(found) != count:
            raise StoreError(f"{where}: expected {count} bytes of {name}, got {'none' if found is None else len(found)}")


def _features(row: Mapping[str, Any]) -> npt.NDArray[np.float16]:
    """Return features (S, D)."""
    if row["dtype"] == "int8":
        return from_int8(row["features"], row["scale"]).reshape(row["shape"])
    return np.frombuffer(row["features"], "<f2").reshape(row["shape"])


def _order(row: Mapping[str, Any]) -> StoredOrder | None:
    if row.get("rank") is None:
        return None
    columns = {name: np.frombuffer(row[name], kind) for name, kind in ORDER.items()}
    return StoredOrder(**columns, owner=np.frombuffer(row["owner"], "<i2"))


def _clip_space(row: Mapping[str, Any]) -> npt.NDArray[np.float16] | None:
    return None if row.get("clip_space") is None else from_int8(row["clip_space"], row["clip_scale"])


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
