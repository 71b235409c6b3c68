"""The token store on local disk and on a real S3 server: every video once, nothing stale, nothing undetected."""

import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError, StoreError
from pipeline.fingerprint import canonical_json, fingerprint
from pipeline.schema import MANIFEST
from pipeline.storage.filesystem import create_exclusive, open_root
from pipeline.store.shards import read_footer
from pipeline.store.token_store import Commit, TokenStore
from pipeline.store.verify import verify
from tests.tables import SPEC, corpus, encoded, failed, row

Place = tuple[str, dict[str, Any]]
ROOT = Path(__file__).parents[2]


def files(store: TokenStore) -> list[str]:
    return sorted(store.fs.find(store.root))


def test_what_was_committed_is_read_back_bit_for_bit(place: Place) -> None:
    """All columns, by another reader that knows only the URL."""
    url, options = place
    rows = [row("b"), row("a", tokens=3), row("c", tokens=0)]
    manifest = Commit(url, SPEC, options)(encoded(rows))
    assert manifest.schema == MANIFEST
    assert [(r["video_id"], r["status"], r["tokens"]) for r in manifest.to_pylist()] == [
        ("b", "committed", 6), ("a", "committed", 3), ("c", "committed", 0),
    ]  # fmt: skip
    store = TokenStore.open(url, storage_options=options)
    assert store.ids() == ["a", "b", "c"]
    for given in rows:
        entry = store.read(given["video_id"])
        assert entry.features.tobytes() == given["features"]
        assert entry.features.shape == tuple(given["shape"])
        for name in ("frame", "anchor", "kind", "size", "position"):
            assert getattr(entry, name).tobytes() == given[name]
        assert entry.grid == (8, 16, 16)
        assert entry.source_sha256 == given["source_sha256"]
        assert entry.payload_sha256 == store.payloads()[given["video_id"]]


def test_the_same_unit_committed_twice_is_there_once(place: Place) -> None:
    """A retried task or a second submit adds no file and no entry."""
    url, options = place
    unit = encoded([row("a"), row("b"), failed("c")])
    first = Commit(url, SPEC, options)
    first(unit)
    before = files(first.store)
    again = Commit(url, SPEC, options)(unit).to_pylist()
    assert [r["status"] for r in again] == ["duplicate", "duplicate", "failed"]
    assert files(first.store) == before


def test_runs_that_overlap_in_other_units_leave_each_video_once(place: Place) -> None:
    """Both saw an empty index; what they cut differently is resolved the same way by every reader."""
    url, options = place
    one, other = TokenStore.create(url, SPEC, options), TokenStore.create(url, SPEC, options)
    one.refresh = other.refresh = lambda: None  # type: ignore[method-assign]  # as if each listed before the other wrote
    one.commit(encoded([row("a"), row("b")]))
    other.commit(encoded([row("b"), row("c")]))
    readers = [TokenStore.open(url, storage_options=options) for _ in range(2)]
    assert [reader.ids() for reader in readers] == [["a", "b", "c"]] * 2
    assert readers[0].index.rows.equals(readers[1].index.rows)
    assert readers[0].read("b").features.tobytes() == row("b")["features"]


def test_what_another_run_committed_meanwhile_is_not_written_again(place: Place) -> None:
    """The commit looks once more."""
    url, options = place
    late = TokenStore.create(url, SPEC, options)
    TokenStore.create(url, SPEC, options).commit(encoded([row("a")]))
    manifest = late.commit(encoded([row("a"), row("b")])).to_pylist()
    assert [r["status"] for r in manifest] == ["duplicate", "committed"]


def test_missing_is_what_is_new_changed_or_to_be_retried(tmp_path: Path) -> None:
    """Committed videos are done, failed ones too unless their class is asked for; storage faults always come again."""
    store = TokenStore.create(str(tmp_path), SPEC)
    store.commit(encoded([row("a"), failed("b"), failed("c", "TIMEOUT"), failed("d", "UNREADABLE", seed=None)]))
    store.refresh()
    everything = corpus("a", "b", "c", "d", "e")
    assert store.missing(everything)["video_id"].to_pylist() == ["d", "e"]
    assert store.missing(everything, ["TIMEOUT"])["video_id"].to_pylist() == ["c", "d", "e"]
    assert store.missing(corpus("a", "b", hint='{"size":2}'))["video_id"].to_pylist() == ["a", "b"]
    assert store.missing(corpus("a", hint="{}")).num_rows == 0


def test_a_replaced_video_is_served_anew(place: Place) -> None:
    """The new content wins over the old, for a reader that was open as well."""
    url, options = place
    store = TokenStore.create(url, SPEC, options)
    store.commit(encoded([row("a", seed=1)]))
    reader = TokenStore.open(url, storage_options=options)
    store.commit(encoded([row("a", seed=2, source_hint='{"size":2}')]))
    reader.refresh()
    assert reader.ids() == ["a"]
    assert reader.read("a").source_sha256 == f"{2:064x}"


def test_a_replaced_video_that_cannot_be_decoded_is_no_longer_served(tmp_path: Path) -> None:
    """A stale answer would be worse than none; a file that is merely out of reach changes nothing."""
    store = TokenStore.create(str(tmp_path), SPEC)
    store.commit(encoded([row("a", seed=1), row("b", seed=1)]))
    store.commit(encoded([failed("a", seed=2), failed("b", "NOT_FOUND", seed=None)]))
    store.refresh()
    assert store.ids() == ["b"]
    assert store.failures()["video_id"].to_pylist() == ["a"]


def test_a_retried_video_is_no_failure_any_more(tmp_path: Path) -> None:
    """Later success supersedes, and an equal failure is not listed twice."""
    store = TokenStore.create(str(tmp_path), SPEC)
    store.commit(encoded([failed("a", "TIMEOUT")]))
    before = files(store)
    store.commit(encoded([failed("a", "TIMEOUT")]))
    assert files(store) == before
    store.commit(encoded([row("a")]))
    store.refresh()
    assert (store.ids(), store.failures().num_rows) == (["a"], 0)


def test_two_fingerprints_do_not_see_each_other(tmp_path: Path) -> None:
    """Another reducer is another set of entries; the choice between them is the reader's."""
    other = {**SPEC, "reducer": {"name": "spatial", "version": 1}}
    Commit(str(tmp_path), SPEC)(encoded([row("a")]))
    Commit(str(tmp_path), other)(encoded([row("b")]))
    with pytest.raises(ConfigError, match=r"--fingerprint.*none.*spatial|--fingerprint.*spatial.*none"):
        TokenStore.open(str(tmp_path))
    assert TokenStore.open(str(tmp_path), fingerprint(other)[:10]).ids() == ["b"]
    with pytest.raises(ConfigError, match="0 fingerprints match"):
        TokenStore.open(str(tmp_path), "zzz")


def test_there_is_no_store_where_none_was_written(tmp_path: Path) -> None:
    """One line, for an empty folder, a missing one and an unknown protocol."""
    for url in (str(tmp_path), str(tmp_path / "none"), "nope://x"):
        with pytest.raises(ConfigError):
            TokenStore.open(url)


def test_a_newer_store_is_refused(tmp_path: Path) -> None:
    """Not guessed at."""
    TokenStore.create(str(tmp_path), {**SPEC, "schema_version": 99})
    with pytest.raises(ConfigError, match="upgrade"):
        TokenStore.open(str(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_without_permission_is_a_setting_to_mend(tmp_path: Path) -> None:
    """Nothing is written, one line says why."""
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(ConfigError, match="permission"):
        TokenStore.create(str(tmp_path / "s"), SPEC)


def test_a_root_that_is_a_file_is_a_setting_to_mend(tmp_path: Path) -> None:
    """One line says what stands in the way."""
    (tmp_path / "f").write_text("x")
    with pytest.raises(ConfigError):
        TokenStore.create(str(tmp_path / "f"), SPEC)


def test_any_flipped_byte_of_any_file_is_detected(tmp_path: Path) -> None:
    """By verify, always; by reading, wherever the byte is one that reading depends on: nothing wrong is ever returned."""
    store = TokenStore.create(str(tmp_path), SPEC)
    rows = [row("a"), row("b", tokens=40)]
    store.commit(encoded([*rows, failed("c")]))
    assert verify(*open_root(str(tmp_path))).as_dict()["ok"]
    truth = {r["video_id"]: r["features"] for r in rows}
    for path in map(Path, files(store)):
        content = path.read_bytes()
        for at in np.random.default_rng(0).choice(len(content), min(len(content), 60), replace=False):
            path.write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
            assert verify(*open_root(str(tmp_path))).problems, f"{path.name} byte {at}"
            try:
                reader = TokenStore.open(str(tmp_path))
                read = {name: reader.read(name).features.tobytes() for name in reader.ids()}
            except (StoreError, ConfigError):
                continue
            assert read == truth, f"{path.name} byte {at}"
        path.write_bytes(content)


def test_verify_names_what_is_missing_and_counts_orphans(tmp_path: Path) -> None:
    """A shard that nothing names is harmless, one that is named and gone is not."""
    store = TokenStore.create(str(tmp_path), SPEC)
    store.commit(encoded([row("a")]))
    shard = next(path for path in map(Path, files(store)) if "/tokens/" in str(path))
    create_exclusive(store.fs, f"{store.tokens}/{'0' * 64}.parquet", shard.read_bytes())
    report = verify(*open_root(str(tmp_path)))
    assert report.orphans == 1
    shard.unlink()
    report = verify(*open_root(str(tmp_path)))
    assert report.damaged == ["a"]
    assert any("missing" in line for line in report.problems)


def test_an_entry_is_read_by_one_range_of_little_more_than_its_bytes(tmp_path: Path) -> None:
    """Counted at the file system, with the footer known: one request, at most 1.1 times the entry."""
    store = TokenStore.create(str(tmp_path), SPEC)
    store.commit(encoded([row(f"v{i}", tokens=64, width=1024) for i in range(8)]))
    store.refresh()
    store.read("v0")
    asked: list[int] = []
    original = store.fs.cat_file

    def counting(path: str, start: int, end: int) -> bytes:
        asked.append(end - start)
        return original(path, start=start, end=end)

    store.fs.cat_file = counting
    try:
        entry = store.read("v5")
    finally:
        del store.fs.cat_file
    assert len(asked) == 1
    columns = (entry.features, entry.frame, entry.anchor, entry.kind, entry.size, entry.position)
    assert asked[0] <= 1.1 * sum(column.nbytes for column in columns)


def test_a_shard_opens_without_this_project(tmp_path: Path) -> None:
    """Plain columns, one row group per entry; NumPy and any Parquet reader suffice."""
    store = TokenStore.create(str(tmp_path), SPEC)
    store.commit(encoded([row("a"), row("b")]))
    path = next(path for path in files(store) if "/tokens/" in path)
    assert read_footer(store.fs, path).num_row_groups == 2
    code = (
        "import sys, numpy, pyarrow.parquet as pq\n"
        f"rows = pq.read_table({path!r}).to_pylist()\n"
        "print([numpy.frombuffer(r['features'], r['dtype']).reshape(r['shape']).shape for r in rows])\n"
        "assert not any(name.split('.')[0] in ('pipeline', 'jobs', 'reducers') for name in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert ran.stdout.strip() == "[(6, 4), (6, 4)]"


def test_an_intact_file_with_other_content_is_not_believed(tmp_path: Path) -> None:
    """Every page checksum holds, and yet these are not the tokens that were committed."""
    store = TokenStore.create(str(tmp_path), SPEC)
    store.commit(encoded([row("a"), row("b")]))
    store.refresh()
    places = [store._place(store.index.get(name) or {}) for name in "ab"]
    swapped = replace(places[0], payload_sha256=places[1].payload_sha256)
    with pytest.raises(StoreError, match="payload digest"):
        store.reader.read(swapped)


def test_shapes_in_a_store_are_not_trusted(tmp_path: Path) -> None:
    """A shape that does not fit its bytes is damage, not a reason to read past the end."""
    store = TokenStore.create(str(tmp_path), SPEC)
    store.commit(encoded([row("a", shape=[1000, 1000]), row("b", dtype="float64"), row("c", frame=b"")]))
    store.refresh()
    for name in "abc":
        with pytest.raises(StoreError):
            store.read(name)


def test_video_ids_cannot_leave_the_root(tmp_path: Path) -> None:
    """Ids are data, never part of a path."""
    root = tmp_path / "root"
    store = TokenStore.create(str(root), SPEC)
    names = ["../../x", "/etc/passwd", "-rf", "a/../../b"]
    store.commit(encoded([row(name) for name in names]))
    store.refresh()
    assert store.ids() == sorted(names)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root"]


@pytest.mark.parametrize("field", ["tower", "schema_version", "reducer"])
def test_the_fingerprint_depends_on_every_field(field: str) -> None:
    """Order of keys does not matter, everything else does."""
    changed = {**SPEC, field: 7}
    assert fingerprint(changed) != fingerprint(SPEC)
    assert fingerprint(dict(reversed(SPEC.items()))) == fingerprint(SPEC)
    assert json.loads(canonical_json(SPEC)) == SPEC


def test_a_spec_must_be_plain_json() -> None:
    """NaN has no one spelling."""
    with pytest.raises(ConfigError):
        fingerprint({"a": float("nan")})


def test_two_writers_race_for_one_name_and_one_wins(place: Place) -> None:
    """Exclusive creation holds on both kinds of storage."""
    url, options = place
    fs, root = open_root(url, options)
    won = [create_exclusive(fs, f"{root}/x", b"one"), create_exclusive(fs, f"{root}/x", b"two")]
    assert won == [True, False]
    assert fs.cat_file(f"{root}/x") == b"one"


def test_a_shard_is_an_ordinary_parquet_file_with_page_checksums(tmp_path: Path) -> None:
    """A flipped byte of a page is caught by pyarrow alone, when asked to check."""
    store = TokenStore.create(str(tmp_path), SPEC)
    store.commit(encoded([row("a", tokens=64, width=64)]))
    path = Path(next(path for path in files(store) if "/tokens/" in path))
    content = bytearray(path.read_bytes())
    content[2000] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(OSError, match="CRC"):
        pq.ParquetFile(path, page_checksum_verification=True).read()


def test_a_root_may_have_the_name_of_a_pattern(place: Place) -> None:
    """Brackets and stars in a path are names, also to the reader that fetches many files at once."""
    url, options = place
    Commit(f"{url}/run1", SPEC, options)(encoded([row("other")]))
    for name in ("run[1]", "run*"):
        Commit(f"{url}/{name}", SPEC, options)(encoded([row("a"), row("b")]))
        store = TokenStore.open(f"{url}/{name}", storage_options=options)
        assert store.ids() == ["a", "b"]
        assert store.read("a").features.tobytes() == row("a")["features"]
