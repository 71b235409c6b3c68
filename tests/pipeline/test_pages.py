"""Entries from their own bytes: the same as pyarrow reads by the footer, for every layout, and nothing wrong from any byte."""

import hashlib
import zlib
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import StoreError
from pipeline.schema import ENTRY, INDEX
from pipeline.store.entries import EXTRAS, payload_digest
from pipeline.store.index import fragment
from pipeline.store.page_reader import (
    ABSENT,
    GROUPS,
    HEADER,
    LAYOUTS,
    PRESENT,
    UNPACKED,
    ZSTD,
    _number,
    most_unpacked,
    parse_row,
)
from pipeline.store.shards import parse_footer, row_group_spans, write_shard
from pipeline.store.token_store import TokenStore
from tests.tables import SPEC, encoded, row

EXTRA = {name: np.random.default_rng(at).bytes(40) for at, name in enumerate(EXTRAS)}


def entry(name: str, groups: tuple[bool, ...] = (False,) * len(GROUPS), **changes: Any) -> dict[str, Any]:
    held = {column for group, wanted in zip(GROUPS, groups, strict=True) if wanted for column in group}
    found = {column: row(name).get(column) for column in ENTRY.names} | {column: EXTRA[column] for column in held} | changes
    return found | {"payload_sha256": payload_digest(found)}


def row_groups(rows: list[dict[str, Any]], **options: Any) -> tuple[bytes, list[bytes]]:
    """A shard of these rows and the bytes of each of its row groups; with options, as another writer would have it."""
    table = pa.Table.from_pylist(rows, schema=ENTRY)
    if options:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, row_group_size=1, **options)
        content = sink.getvalue().to_pybytes()
    else:
        content = bytes(write_shard(table))
    return content, [content[at : at + length] for at, length in row_group_spans(parse_footer(content, "shard"))]


def test_each_layout_is_known_by_its_number_of_columns() -> None:
    """Every optional column is in one group, and no two sets of groups are of one size."""
    assert sorted(name for group in GROUPS for name in group) == sorted(EXTRAS)
    assert len(LAYOUTS) == 2 ** len(GROUPS)
    assert all(list(names) == [name for name in ENTRY.names if name in names] for names in LAYOUTS.values())


@pytest.mark.parametrize("groups", list(product([False, True], repeat=len(GROUPS))))
def test_the_bytes_give_what_pyarrow_reads_by_the_footer(groups: tuple[bool, ...]) -> None:
    """Beside entries without the optional columns, of no tokens, without times, with long ids and of a real size."""
    rows = [entry("a", groups), entry("b"), entry("c" * 300, groups, timestamps_s=[]),
            entry("é", groups, **{name: row("é", tokens=0)[name] for name in ("features", "shape", "frame", "kind")}),
            entry("d", groups, timestamps_s=[0.5 * at for at in range(2000)]),
            entry("e", groups, features=np.random.default_rng(0).bytes(300_001))]  # fmt: skip
    content, parts = row_groups(rows)
    seen = pq.read_table(pa.BufferReader(content)).to_pylist()
    for part, by_footer in zip(parts, seen, strict=True):
        found = parse_row(part, "shard")
        assert {name: bytes(value) if isinstance(value, memoryview) else value for name, value in found.items()} == by_footer


@pytest.mark.parametrize("position", range(8))
def test_no_flipped_bit_gives_another_row(position: int) -> None:
    """In each byte one bit: an error, or a page header that says the same."""
    _, (part,) = row_groups([entry("a", (True,) * len(GROUPS))])
    right = parse_row(part, "shard")
    for at in range(len(part)):
        flipped = bytearray(part)
        flipped[at] ^= 1 << (at + position) % 8
        try:
            assert parse_row(bytes(flipped), "shard") == right, at
        except StoreError:
            continue


def test_bytes_that_claim_too_much_are_refused() -> None:
    """Cut short, run on, or of a size that nothing stored has."""
    _, (part,) = row_groups([entry("a")])
    for wrong in (b"", part[:-1], part + part[:50], part + b"\0", part * 2):
        with pytest.raises(StoreError, match="the entry is damaged"):
            parse_row(wrong, "shard")
    _, (large,) = row_groups([entry("a", kind=bytes(8 << 20))])
    assert most_unpacked(len(large)) < 8 << 20
    with pytest.raises(StoreError, match="unpack to too much"):
        parse_row(large, "shard")


OTHERS: dict[str, dict[str, Any]] = {
    "other pages": {"data_page_version": "2.0", "compression": "NONE", "write_statistics": False, "use_dictionary": False},
    "dictionaries": {"use_dictionary": True, "write_statistics": False},
    "another packing": {"compression": "gzip", "use_dictionary": False, "write_page_checksum": True},
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_shard_of_another_writer_is_read_by_its_footer(name: str, tmp_path: Path) -> None:
    """Whatever Parquet allows: the digest says that it is the entry."""
    store = TokenStore.create(str(tmp_path), SPEC)
    rows = [entry("a"), entry("b")]
    content, parts = row_groups(rows, **OTHERS[name])
    with pytest.raises(StoreError):
        parse_row(parts[1], "shard")
    shard = hashlib.sha256(content).hexdigest()
    Path(store.tokens).mkdir(parents=True)
    Path(store.tokens, f"{shard}.parquet").write_bytes(content)
    spans = row_group_spans(parse_footer(content, "shard"))
    listed = [
        {column: given.get(column) for column in INDEX.names}
        | {"uri": "u", "status": "committed", "generation": 1, "tokens": 6, "shard": shard, "row_group": number}
        | {"offset": offset, "length": length}
        for number, (given, (offset, length)) in enumerate(zip(rows, spans, strict=True))
    ]
    Path(store.index.folder).mkdir(parents=True)
    fragment_bytes = fragment(listed)
    Path(store.index.folder, f"{hashlib.sha256(fragment_bytes).hexdigest()}.parquet").write_bytes(fragment_bytes)
    reader = TokenStore.open(str(tmp_path))
    assert {video: reader.read(video).features.tobytes() for video in reader.ids()} == {
        given["video_id"]: given["features"] for given in rows
    }


def test_features_can_be_computed_with_wherever_they_lie(tmp_path: Path) -> None:
    """Ids of either parity shift them by a byte; arrays are aligned all the same."""
    store = TokenStore.create(str(tmp_path), SPEC)
    store.commit(encoded([row("v" * length) for length in range(1, 9)]))
    reader = TokenStore.open(str(tmp_path))
    for video in reader.ids():
        read = reader.read(video)
        for name in ("features", "frame", "anchor", "size", "position"):
            assert getattr(read, name).flags.aligned, (video, name)


def test_looking_an_entry_up_needs_neither_footer_nor_a_second_request(tmp_path: Path) -> None:
    """In a store just opened; the footer is asked only for what its bytes do not give."""
    store = TokenStore.create(str(tmp_path), SPEC)
    store.commit(encoded([row(name) for name in "abc"]))
    reader = TokenStore.open(str(tmp_path))
    assert reader.read("b").features.tobytes() == row("b")["features"]
    assert reader.reader.footer.cache_info().currsize == 0


def paged(part: bytes, column: str, page: bytes, *, values: int = 1, unpacked: int | None = None) -> bytes:
    """A row group in which a column says something else, under a header that is right about its size and its CRC."""
    spans, at = [], 0
    while at < len(part):
        header = HEADER.match(part, at)
        assert header is not None
        spans.append((at, header.end() + _number(header[2])))
        at = spans[-1][1]
    start, end = spans[LAYOUTS[len(spans)].index(column)]
    stored = page if column == UNPACKED else ZSTD.compress(page, asbytes=True)
    return part[:start] + header_of(unpacked or len(page), len(stored), zlib.crc32(stored), values) + stored + part[end:]


def header_of(unpacked: int, packed: int, crc: int, values: int) -> bytes:
    """The header of a data page, as Thrift's compact protocol writes it."""
    crc -= (crc >> 31) << 32
    size = b"\x15\x00\x15" + varint(unpacked) + b"\x15" + varint(packed) + b"\x15" + varint(crc)
    return size + b"\x1c\x15" + varint(values) + b"\x15\x00\x15\x06\x15\x06\x00\x00"


def varint(number: int) -> bytes:
    """A signed 32-bit integer, small ones in few bytes."""
    rest, found = (number << 1) ^ (number >> 31), []
    while rest > 0x7F:
        found.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes([*found, rest])


TEXT = len(b"abc").to_bytes(4, "little") + b"abc"


def test_a_page_that_is_made_here_is_read() -> None:
    """So that the refusals below are about what they say."""
    _, (part,) = row_groups([entry("a")])
    assert parse_row(paged(part, "video_id", PRESENT + TEXT), "shard")["video_id"] == "abc"
    times = (6).to_bytes(4, "little") + bytes(6) + (6).to_bytes(4, "little") + bytes(6) + np.float32([1, 2]).tobytes()
    assert parse_row(paged(part, "timestamps_s", times, values=2), "shard")["timestamps_s"] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("column", "page", "values", "said"),
    [
        ("video_id", ABSENT[:5] + b"\x07" + TEXT, 1, "video_id is not one value"),
        ("video_id", PRESENT + TEXT + b"d", 1, "video_id is not one value"),
        ("video_id", PRESENT + TEXT[:-1], 1, "video_id is not one value"),
        ("video_id", PRESENT + TEXT, 2, "video_id is not one value"),
        ("features", PRESENT + TEXT + b"d", 1, "features is not one value"),
        ("video_id", PRESENT + (1).to_bytes(4, "little") + b"\xff", 1, "utf-8"),
        ("timestamps_s", bytes(8) + bytes(12), 2, "a list that is not of 2 numbers"),
        ("timestamps_s", bytes(8) + bytes(12), 4, "a list that is not of 4 numbers"),
        ("shape", b"", 1, "a list that is not of 1 numbers"),
    ],
)
def test_a_page_that_is_whole_and_says_something_else_is_refused(column: str, page: bytes, values: int, said: str) -> None:
    """Its CRC is right: levels, lengths and counts are looked at all the same."""
    _, (part,) = row_groups([entry("a")])
    with pytest.raises(StoreError, match=f"the entry is damaged: .*{said}"):
        parse_row(paged(part, column, page, values=values), "shard")


@pytest.mark.parametrize(("unpacked", "packed"), [(4, -1), (-4, 0), (4, 1000)])
def test_a_page_of_no_possible_size_is_refused(unpacked: int, packed: int) -> None:
    """Before anything goes back in the bytes, or is unpacked."""
    with pytest.raises(StoreError, match="a page that does not end"):
        parse_row(header_of(unpacked, packed, 0, 1) + b"rest", "shard")


def test_what_does_not_unpack_is_damaged() -> None:
    """Another packing, and another size than the header says."""
    _, (part,) = row_groups([entry("a")])
    right = paged(part, "video_id", PRESENT + TEXT)
    wrong = paged(part, "video_id", PRESENT + TEXT, unpacked=5)
    for content in (wrong, right.replace(ZSTD.compress(PRESENT + TEXT, asbytes=True), PRESENT + TEXT)):
        with pytest.raises(StoreError, match="the entry is damaged"):
            parse_row(content, "shard")


def test_an_entry_may_take_sixteen_times_its_size_and_something_over() -> None:
    """Ids and times of a clip without tokens pack well; a page for the machine's memory does not pass."""
    assert (most_unpacked(0), most_unpacked(1000)) == (65536, 65536 + 16_000)
