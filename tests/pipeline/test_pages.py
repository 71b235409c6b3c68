"""Entries from their own bytes: the same as pyarrow reads by the footer, for every layout, and nothing wrong from any byte."""

import hashlib
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.entries import EXTRAS, payload_digest
from pipeline.errors import StoreError
from pipeline.index import fragment
from pipeline.pages import GROUPS, LAYOUTS, most_unpacked, parse_row
from pipeline.schema import ENTRY, INDEX
from pipeline.shards import parse_footer, row_group_spans, write_shard
from pipeline.store import TokenStore
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
