"""Exports are what is stored, for programs that know nothing of this project."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

from jobs.commands.store import StoreJob, run
from pipeline.errors import ConfigError
from pipeline.storage.filesystem import open_root
from pipeline.store.entries import Entry
from pipeline.store.export import Format, export
from pipeline.store.quantize import to_int8
from pipeline.store.token_store import TokenStore
from tests.tables import SPEC, encoded, failed, row

Place = tuple[str, dict[str, Any]]
NAMES = ["a", "b/c", "../d", "é" * 300, "-rf"]
KINDS: tuple[Format, ...] = ("parquet", "safetensors", "npz")


def filled(url: str, options: dict[str, Any] | None = None) -> TokenStore:
    store = TokenStore.create(url, SPEC, options)
    store.commit(encoded([*(row(name, tokens=3 + at) for at, name in enumerate(NAMES)), row("none", tokens=0), failed("bad")]))
    store.refresh()
    return store


def exported(out: str, options: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The file of each video, by the manifest."""
    fs, root = open_root(out, options)
    found: dict[str, dict[str, Any]] = {}
    for line in fs.cat_file(f"{root}/manifest.jsonl").decode().splitlines():
        held = json.loads(line)
        with fs.open(f"{root}/{held['file']}") as file:
            content = file.read()
        found[held["video_id"]] = {"content": content, **held}
    return found


def arrays_of(held: dict[str, Any], kind: str, scratch: Path) -> dict[str, Any]:
    path = scratch / "one"
    path.write_bytes(held["content"])
    if kind == "parquet":
        (one,) = [r for r in pq.read_table(path).to_pylist() if r["video_id"] == held["video_id"]]
        return {name: np.array(value) for name, value in one.items()}
    if kind == "npz":
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    with safe_open(path, framework="numpy") as file:
        assert json.loads(file.metadata()["entry"])["payload_sha256"] == held["payload_sha256"]
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def same(entry: Entry, arrays: dict[str, Any]) -> bool:
    names = ("features", "frame", "anchor", "kind", "size", "position")
    shape = entry.features.shape
    return all(
        np.array_equal(getattr(entry, n).ravel(), np.asarray(arrays[n], getattr(entry, n).dtype).ravel()) for n in names
    ) and (shape[0] == 0 or np.asarray(arrays["features"]).shape == shape)


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_holds_every_number_of_every_entry(place: Place, tmp_path: Path, kind: Format) -> None:
    """Whatever the ids are; a second export writes nothing."""
    url, options = place
    store, out = filled(f"{url}/store", options), f"{url}/out"
    told = export(store, out, kind, videos_per_file=2, options=options)
    assert (told["videos"], told["files_written"], told["damaged"]) == (6, 3 if kind == "parquet" else 6, [])
    found = exported(out, options)
    assert sorted(found) == store.ids()
    for name, held in found.items():
        assert same(store.read(name), arrays_of(held, kind, tmp_path)), name
    assert export(store, out, kind, videos_per_file=2, options=options)["files_written"] == 0
    fs, root = open_root(url, options)
    assert {path.removeprefix(root).split("/")[1] for path in fs.find(root)} == {"store", "out"}


@pytest.mark.parametrize("kind", KINDS)
def test_only_what_changed_is_exported_anew(tmp_path: Path, kind: Format) -> None:
    """An entry of a replaced video is in another file, and the manifest names that one; equal exports are equal bytes."""
    store, out = filled(str(tmp_path / "store")), tmp_path / "out"
    export(store, str(out), kind, videos_per_file=1)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    store.commit(encoded([row("a", seed=5, source_hint='{"size":9}')]))
    store.refresh()
    assert export(store, str(out), kind, videos_per_file=1)["files_written"] == 1
    assert same(store.read("a"), arrays_of(exported(str(out), {})["a"], kind, tmp_path))
    for path in out.iterdir():
        assert path.name == "manifest.jsonl" or before.get(path.name) in (None, path.read_bytes())
    export(store, str(tmp_path / "again"), kind, videos_per_file=1)
    assert all(path.read_bytes() == (out / path.name).read_bytes() for path in (tmp_path / "again").iterdir())


def test_a_damaged_entry_is_left_out_and_named(tmp_path: Path) -> None:
    """The others are exported; exit 1."""
    store = filled(str(tmp_path / "store"))
    place = store.index.get("b/c") or {}
    shard = tmp_path / "store" / "tokens" / store.fingerprint / f"{place['shard']}.parquet"
    content = bytearray(shard.read_bytes())
    content[place["offset"] + 150] ^= 1
    shard.write_bytes(bytes(content))
    job = StoreJob(what="export", store=str(tmp_path / "store"), out=str(tmp_path / "out"), videos_per_file=10)
    told = run(job)
    assert (told["damaged"], told["videos"], told["exit_code"]) == (["b/c"], 5, 1)
    assert "b/c" not in exported(str(tmp_path / "out"), {})


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_what_was_committed_is_not_exported(tmp_path: Path, kind: Format) -> None:
    """A whole shard of another content under the name of one that was committed: its own checksums hold, the digests differ."""
    store = filled(str(tmp_path / "store"))
    other = TokenStore.create(str(tmp_path / "other"), SPEC)
    other.commit(encoded([row(name, seed=1, tokens=3 + at) for at, name in enumerate(NAMES)] + [row("none", tokens=0)]))
    (shard,) = (tmp_path / "store").rglob("tokens/*/*.parquet")
    (swapped,) = (tmp_path / "other").rglob("tokens/*/*.parquet")
    shard.write_bytes(swapped.read_bytes())
    told = export(TokenStore.open(str(tmp_path / "store")), str(tmp_path / "out"), kind)
    assert set(NAMES) <= set(told["damaged"])  # an entry without tokens may be the same in both
    assert told["videos"] == len(store.ids()) - len(told["damaged"])


def test_an_export_that_was_interrupted_goes_on(tmp_path: Path) -> None:
    """Files are there whole or not at all; without a manifest the export is not finished."""
    store, out = filled(str(tmp_path / "store")), tmp_path / "out"
    export(store, str(out), "npz")
    (out / "manifest.jsonl").unlink()
    gone = sorted(out.iterdir())[:2]
    for path in gone:
        path.unlink()
    assert export(store, str(out), "npz")["files_written"] == 2
    assert len(exported(str(out), {})) == 6


def test_int8_tokens_are_exported_as_numbers(tmp_path: Path) -> None:
    """Their scale is applied."""
    features = np.random.default_rng(0).normal(size=(6, 4)).astype("<f2")
    values, scale = to_int8(features)
    store = TokenStore.create(str(tmp_path / "store"), SPEC)
    store.commit(encoded([row("q", features=values, scale=scale, dtype="int8")]))
    store.refresh()
    export(store, str(tmp_path / "out"))
    (file,) = (tmp_path / "out").glob("*.parquet")
    found = np.array(pq.read_table(file)["features"].to_pylist()[0])
    np.testing.assert_allclose(found, features, atol=0.05)
    np.testing.assert_array_equal(found.astype("<f2"), store.read("q").features)


def test_pandas_reads_an_export(tmp_path: Path) -> None:
    """In a process that never imports this project."""
    export(filled(str(tmp_path / "store")), str(tmp_path / "out"))
    code = (
        "import sys, glob, numpy, pandas\n"
        "frame = pandas.read_parquet(glob.glob('out/*.parquet')[0]).set_index('video_id')\n"
        "print(numpy.stack(frame.loc['a', 'features']).shape, frame.loc['a', 'grid'].tolist())\n"
        "assert not any(name.split('.')[0] in ('pipeline', 'jobs', 'reducers') for name in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert ran.stdout.strip() == "(3, 4) [8, 16, 16]"


def test_exports_that_cannot_be_are_refused(tmp_path: Path) -> None:
    """No folder, no videos to a file, no place to write."""
    store = filled(str(tmp_path / "store"))
    with pytest.raises(ConfigError, match="--out"):
        run(StoreJob(what="export", store=str(tmp_path / "store")))
    with pytest.raises(ConfigError, match="videos_per_file"):
        export(store, str(tmp_path / "out"), videos_per_file=0)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError):
        export(store, str(tmp_path / "file"))
