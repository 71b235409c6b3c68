"""An entry from its own bytes: the pages of one row group, read by their headers, without the footer of the shard.

A row group as `shards.write_shard` writes it is a run of pages, one per column in the order of `schema.ENTRY`: version 1,
plain, one row, packed with zstd but for the features. Page headers follow parquet-format's `parquet.thrift` in Thrift's compact
protocol, levels its `Encodings.md`. What looks otherwise is for pyarrow and the footer to read. Nothing here is believed: the
caller compares the digest that the index holds.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pyarrow as pa

from pipeline.errors import StoreError
from pipeline.schema import ENTRY, OPTIONAL

NUMBER = rb"([\x80-\xff]{0,4}[\x00-\x7f])"
HEADER = re.compile(
    rb"\x15\x00\x15" + NUMBER + rb"\x15" + NUMBER + rb"\x15" + NUMBER  # a data page: its size unpacked, its size, its CRC-32
    + rb"\x1c\x15" + NUMBER + rb"\x15\x00\x15\x06\x15\x06(?:\x1c\x00)?\x00\x00",  # its values: how many, plain, levels in runs
    re.DOTALL,
)  # fmt: skip
UNPACKED = "features"
"""The column that is stored as it is."""
GROUPS = (("scale",), ("rank", "parent", "link", "weight", "gain", "owner"), ("clip_space", "clip_scale"))
"""Optional columns that come together; how many there are tells which."""
REQUIRED = tuple(name for name in ENTRY.names if name not in dict(OPTIONAL))
ZSTD = pa.Codec("zstd")
PRESENT, ABSENT = b"\x02\x00\x00\x00\x02\x01", b"\x02\x00\x00\x00\x02\x00"
"""Levels of a value that is there, and of null."""
EMPTY = b"\x02\x00\x00\x00\x02\x00\x02\x00\x00\x00\x02\x01"
"""Levels of a list of nothing."""
SPARE_BYTES = 1 << 16
MOST_UNPACKED = 16
"""How many times its stored size an entry may take in memory: features are stored as they are, and outweigh the rest."""


def most_unpacked(length: int) -> int:
    """Return how many bytes an entry may take in memory that takes so many in its shard."""
    return SPARE_BYTES + MOST_UNPACKED * length


def _layouts() -> dict[int, tuple[str, ...]]:
    """Return the columns of a row group by the number of its pages."""
    found = {}
    for count in range(len(GROUPS) + 1):
        for groups in combinations(GROUPS, count):
            held = {name for group in groups for name in group}
            names = tuple(name for name in ENTRY.names if name in REQUIRED or name in held)
            found[len(names)] = names
    return found


LAYOUTS = _layouts()
LISTS = {name: "f" if name == "timestamps_s" else "i" for name in ("shape", "grid", "timestamps_s")}
"""How `struct` unpacks each list."""
TEXTS = frozenset(field.name for field in ENTRY if pa.types.is_string(field.type))
LARGE = frozenset(field.name for field in ENTRY if pa.types.is_large_binary(field.type))


def parse_row(content: bytes, where: str) -> dict[str, Any]:
    """Return a row of `schema.ENTRY` from the bytes of its row group; large columns are views of them. Any: of all types.

    Raises StoreError where a page is damaged or is not as this module knows it.
    """
    try:
        pages = list(_pages(content))
        names = LAYOUTS.get(len(pages))
        if names is None:
            raise ValueError(f"{len(pages)} columns")
        room = most_unpacked(len(content)) - sum(size for _, size, _ in pages)
        if room < 0:
            raise ValueError("pages that unpack to too much")
        return {name: _value(name, *page) for name, page in zip(names, pages, strict=True)}
    except (ValueError, pa.ArrowException, OSError) as error:
        raise StoreError(f"{where}: the entry is damaged: {error}") from error


def _pages(content: bytes) -> Iterator[tuple[memoryview, int, int]]:
    """Yield the content of each page, its size unpacked and how many values it says it has, checked against its CRC."""
    whole, at = memoryview(content), 0
    while at < len(content):
        header = HEADER.match(content, at)
        if header is None:
            raise ValueError(f"no page begins at byte {at}")
        unpacked, packed, crc, values = map(_number, header.groups())
        page = whole[header.end() : header.end() + packed]
        if unpacked < 0 or len(page) != packed:
            raise ValueError("a page that does not end")
        if zlib.crc32(page) != crc & 0xFFFFFFFF:
            raise ValueError("a page's CRC differs")
        yield page, unpacked, values
        at = header.end() + packed


def _number(varint: bytes) -> int:
    """Return a signed integer as Thrift's compact protocol writes it."""
    found = 0
    for place, byte in enumerate(varint):
        found |= (byte & 0x7F) << 7 * place
    return found >> 1 ^ -(found & 1)


def _value(name: str, page: memoryview, unpacked: int, values: int) -> Any:
    """Return the one value of a column. Any: of its type."""
    if name != UNPACKED:
        page = memoryview(ZSTD.decompress(page, unpacked, asbytes=True))
    if name in LISTS:
        return _list(page, LISTS[name], values)
    if page == ABSENT:
        return None
    if page[:6] != PRESENT or int.from_bytes(page[6:10], "little") != len(page) - 10 or values != 1:
        raise ValueError(f"{name} is not one value")
    if name in TEXTS:
        return str(page[10:], "utf-8")
    return page[10:] if name in LARGE else bytes(page[10:])


def _list(page: memoryview, code: str, values: int) -> list[Any] | None:
    """Return a list of numbers of four bytes. Any: integers or floats."""
    if page == EMPTY:
        return []
    start = 0
    for _ in range(2):  # where lists begin and what is null: all one list of values, or the digest differs
        start += 4 + int.from_bytes(page[start : start + 4], "little")
    numbers = page[start:]
    if len(numbers) != 4 * values:
        raise ValueError(f"a list that is not of {values} numbers")
    return list(struct.unpack(f"<{values}{code}", numbers))
