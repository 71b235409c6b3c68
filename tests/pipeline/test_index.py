"""The index in memory: whatever order fragments come in, the same rows are true, and they take little room."""

import hashlib
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pipeline.store.index
from pipeline.errors import StoreError
from pipeline.schema import INDEX
from pipeline.storage.filesystem import open_root
from pipeline.storage.parquet_io import to_parquet
from pipeline.store.compact_index import ROWS_PER_BLOCK, PackedRows
from pipeline.store.index import Index, fragment, parse_fragment, resolve
from tests.tables import corpus

HINT = '{"size":1}'


def listed(name: str, **changes: Any) -> dict[str, Any]:
    """A row of the index."""
    base = {"video_id": name, "uri": f"/videos/{name}.mp4", "source_hint": HINT, "status": "committed", "generation": 1}
    return {**dict.fromkeys(INDEX.names), **base, "shard": "0" * 64, "row_group": 0, **changes}


ROWS = st.builds(
    lambda name, generation, status, shard, group, error: listed(
        name, generation=generation, status=status, shard=shard, row_group=group, error=error
    ),
    st.sampled_from("abcé"),
    st.integers(1, 3),
    st.sampled_from(["committed", "failed"]),
    st.sampled_from([None, "1" * 64, "2" * 64]),
    st.sampled_from([None, 0, 1]),
    st.sampled_from([None, "x", "y"]),
)


@given(units=st.lists(st.lists(ROWS, min_size=1, max_size=4, unique_by=lambda row: row["video_id"]), min_size=1, max_size=5))
@pytest.mark.parametrize("recent", [0, 3, 4096])
def test_rows_taken_in_one_by_one_are_the_rows_of_all_at_once(
    units: list[list[dict[str, Any]]], recent: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Beside the packed rows or among them, in whatever order: the rule of `resolve` holds."""
    folder = str(tmp_path_factory.mktemp("index"))
    before, pipeline.store.index.RECENT = pipeline.store.index.RECENT, recent
    try:
        index = Index(open_root(folder)[0], folder)
        for unit in units:
            index.append(unit)
            index.refresh()
    finally:
        pipeline.store.index.RECENT = before
    whole = resolve(pa.concat_tables([pa.Table.from_pylist(unit, schema=INDEX) for unit in units]))
    assert index.rows.equals(whole)
    assert [index.get(row["video_id"]) for row in whole.to_pylist()] == whole.to_pylist()
    assert index.get("nobody") is None


@pytest.mark.parametrize("count", [0, 1, ROWS_PER_BLOCK - 1, ROWS_PER_BLOCK, ROWS_PER_BLOCK + 1, 3 * ROWS_PER_BLOCK])
def test_packed_rows_are_unpacked_as_they_were(count: int) -> None:
    """At and around the edges of a block, with ids of any script."""
    rows = pa.Table.from_pylist([listed(f"é{number:05}", uri="u" * number) for number in range(count)], schema=INDEX)
    packed = PackedRows(rows)
    assert len(packed) == count
    assert packed.table().equals(rows)
    for at in {0, count // 2, count - 1} - {-1}:
        assert (packed.get(f"é{at:05}") or {}).get("uri") == (None if at >= count else "u" * at)
    assert packed.get("") is packed.get("zzz") is packed.get("é00000x") is None


def test_a_row_takes_less_than_200_bytes() -> None:
    """With digests that do not compress, times that all differ, and addresses on object storage."""
    draw = random.Random(0)
    fields = {"tokens": 256, "payload_bytes": 1 << 19, "decoder": "decord", "substituted_frames": 0, "length": 540_000}
    rows = [
        listed(
            f"v_{draw.getrandbits(44):011x}",
            uri=f"s3://bucket/clips/v_{number:011x}.mp4",
            source_hint=f'{{"mtime":{1763715600000000000 + draw.getrandbits(50)},"size":{draw.getrandbits(24)}}}',
            shard=f"{number // 64:064x}",
            row_group=number % 64,
            offset=number % 64 * 540_000,
            source_sha256=f"{draw.getrandbits(256):064x}",
            payload_sha256=f"{draw.getrandbits(256):064x}",
            source_bytes=draw.getrandbits(24),
            **fields,
        )
        for number in range(8192)
    ]
    before = pa.total_allocated_bytes()
    packed = PackedRows(resolve(pa.Table.from_pylist(rows, schema=INDEX)))
    taken = pa.total_allocated_bytes() - before + sum(map(len, packed.blocks))
    assert taken <= 200 * len(rows)
    assert taken >= 64 * len(rows)  # two digests of 32 bytes: less would mean that something is not counted


def test_a_row_without_a_hint_is_looked_at_again(tmp_path: Path) -> None:
    """Where storage tells a state, where it tells none, and where the class is none to retry."""
    index = Index(open_root(str(tmp_path))[0], str(tmp_path))
    cleared = listed("c", status="failed", error_class="TIMEOUT", source_hint=None)
    index.append([listed("a", source_hint=None), listed("b"), cleared])
    index.refresh()
    assert index.missing(corpus("a", "b", "c"))["video_id"].to_pylist() == ["a", "c"]
    assert index.missing(corpus("a", "b", "c", hint="{}"))["video_id"].to_pylist() == ["a", "c"]


def test_a_fragment_survives_its_file(tmp_path: Path) -> None:
    """Every column, null or not, and every value of it."""
    rows = [listed("a"), listed("b", error="x\n", source_hint=None)]
    content = fragment(rows)
    name = hashlib.sha256(content).hexdigest()
    assert parse_fragment(f"{name}.parquet", content).to_pylist() == rows


def test_a_fragment_packed_in_another_way_is_read(tmp_path: Path) -> None:
    """As earlier versions wrote them, beside one of today."""
    fs, root = open_root(str(tmp_path))
    rows = [listed("a"), listed("b", error="x\n", source_hint=None)]
    content = to_parquet(pa.Table.from_pylist(rows, schema=INDEX).drop_columns("stored_id"))
    assert content != fragment(rows)
    (tmp_path / f"{hashlib.sha256(content).hexdigest()}.parquet").write_bytes(content)
    Index(fs, root).append([listed("c")])
    assert Index(fs, root).rows.to_pylist() == [*rows, listed("c")]


def test_an_older_generation_that_is_seen_later_does_not_win(tmp_path: Path) -> None:
    """Storage lists as it likes; the rule asks for no order."""
    index = Index(open_root(str(tmp_path))[0], str(tmp_path))
    for generation in (1, 3, 2):
        index.append([listed("a", generation=generation, uri=f"{generation}")])
        index.refresh()
    assert (index.get("a") or {})["generation"] == 3


def test_fragments_merged_between_listing_and_reading_are_read_where_they_went(tmp_path: Path) -> None:
    """What was listed is gone, what it was merged into is read in its place."""
    index = Index(open_root(str(tmp_path))[0], str(tmp_path))
    units = [[listed("a")], [listed("b")]]
    for unit in units:
        index.append(unit)
    seen = sorted(str(path) for path in tmp_path.iterdir())
    index.append([*units[0], *units[1]])
    for path in seen:
        Path(path).unlink()
    assert list(index._contents(seen)) == [index.path([*units[0], *units[1]])]


@pytest.mark.parametrize("wrong", [{"status": "trusted"}, {"generation": None}, {"shard": "../up"}, {"tokens": -1}])
def test_of_many_fragments_the_malformed_one_is_named(wrong: dict[str, Any], tmp_path: Path) -> None:
    """They are looked at together; the line says which file it is."""
    fs, root = open_root(str(tmp_path))
    index = Index(fs, root)
    for rows in ([listed("a")], [listed("b"), listed("c", **wrong)], [listed("d")]):
        index.append(rows)
    with pytest.raises(StoreError, match="named by digests") as caught:
        Index(fs, root)
    assert str(caught.value).startswith(index.path([listed("b"), listed("c", **wrong)]))
