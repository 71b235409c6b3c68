"""Nothing stale: each field of the encode spec, each change of a source; and by content, nothing encoded twice."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

import pipeline.decode
import pipeline.encode
from jobs.cluster import ClusterConfig
from jobs.encode import EncodeJob, run
from pipeline.care import compact, gc, repair
from pipeline.checkpoint import Checkpoint
from pipeline.decode import DecodeConfig
from pipeline.encode import EncodeConfig, encode_spec
from pipeline.errors import ConfigError
from pipeline.filesystem import open_root
from pipeline.fingerprint import fingerprint
from pipeline.store import TokenStore
from pipeline.verify import verify
from reducers.base import describe
from reducers.grids import Spatial
from reducers.registry import names, parameters, parse
from tests.http_server import http_server
from tests.models import tiny_checkpoint

ROOT = Path(__file__).parents[1]
VIDEOS = ROOT / "tests" / "videos"
CLIP = VIDEOS / "unordered.mov"
REDUCER = "spatial(rows=2,cols=2)"
Place = tuple[str, dict[str, Any]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tiny_checkpoint(tmp_path_factory.mktemp("staleness") / "tiny")
    joint_space(Path(path))
    return path


def joint_space(folder: Path, seed: int = 0) -> None:
    """A visual projection beside the checkpoint, as much of a text tower as encoding needs."""
    (folder / "text_tower").mkdir(exist_ok=True)
    vocabulary = json.loads((folder / "config.json").read_text())["text_config"]["vocab_size"]
    (folder / "text_tower" / "config.json").write_text(json.dumps({"vocab_size": vocabulary}))
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(seed))
    save_file({"weight": weight}, folder / "text_tower" / "visual_projection.safetensors")


def job(corpus: object, store: object, model: object, **flags: Any) -> EncodeJob:
    decode = {name: value for name, value in flags.items() if name in DecodeConfig.__dataclass_fields__}
    encode = {name: value for name, value in flags.items() if name in EncodeConfig.__dataclass_fields__}
    rest = {name: value for name, value in flags.items() if name not in {**decode, **encode}}
    config = EncodeConfig(**{"model": str(model), "reducer": REDUCER, "device": "cpu", **encode})
    where = {"corpus": str(corpus), "store": str(store), "cluster": ClusterConfig(runner="local")}
    return EncodeJob(**where, encode=config, decode=DecodeConfig(**decode), **rest)


def encoded_by(one: EncodeJob) -> list[int]:
    """Run a job; how many videos it encoded, listed by content, and failed to."""
    told = run(one)
    return [told["this_run"].get("committed", 0), told["same_content"], told["this_run"].get("failed", 0)]


def spec_of(one: EncodeJob) -> dict[str, Any]:
    return encode_spec(one.encode, one.decode, Checkpoint.open(one.encode.model, one.encode.revision))


def leaves(spec: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in spec.items():
        found |= leaves(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def with_config(**changes: Any) -> Callable[[Path], None]:
    """Change config.json of a checkpoint; a nested key is written with a dot."""

    def change(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        for name, value in changes.items():
            inner = config
            *outer, last = name.split("__")
            for part in outer:
                inner = inner[part]
            inner[last] = value
        path.write_text(json.dumps(config))

    return change


def with_preprocessor(**values: Any) -> Callable[[Path], None]:
    return lambda folder: bool((folder / "preprocessor_config.json").write_text(json.dumps(values))) or None


def with_one_weight_changed(folder: Path) -> None:
    """The last bit of one number of the tower."""
    path = next(folder.glob("*.safetensors"))
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if "video_tower" in name and name.endswith("fc1.weight"))
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[0] = tensors[name].view(-1)[0].nextafter(tensors[name].new_tensor(1e9))
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def filled(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that holds the one video, and has nothing to do when asked again."""
    store = tmp_path_factory.mktemp("staleness") / "store"
    base = job(CLIP, store, model, clip_space=True)
    assert encoded_by(base) == [1, 0, 0]
    assert encoded_by(base) == [0, 0, 0]
    return store


@contextmanager
def patched(module: Any, name: str, value: Any) -> Iterator[None]:
    """For facts of this program and its libraries, which no flag can change."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def versions(**other: str) -> Any:
    from importlib.metadata import version

    return patched(pipeline.decode, "version", lambda name: other.get(name) or version(name))


OTHER_METHOD = "sequential(k=4)"
"""Another name, and with it other parameters."""

BY_FLAG: dict[str, dict[str, Any]] = {
    "tower.revision": {"revision": "abc"},
    "sampling.policy": {"policy": "arange"},
    "sampling.frames": {"frames": 4},
    "decoder.choice": {"decoder": "pyav"},
    "compute_dtype": {"compute_dtype": "bfloat16"},
    "dtype": {"dtype": "int8"},
    "reducer.name": {"reducer": OTHER_METHOD},
    "reducer.params.k": {"reducer": "spatial(k=5,rows=2,cols=2)"},
    "reducer.params.rows": {"reducer": "spatial(rows=1,cols=2)"},
    "reducer.params.cols": {"reducer": "spatial(rows=2,cols=1)"},
    "reducer.params.anchor": {"reducer": "spatial(rows=2,cols=2,anchor=center)"},
}
"""Fields that a flag changes."""

BY_FILE: dict[str, Callable[[Path], Any]] = {
    "tower.weights_sha256": with_one_weight_changed,
    "tower.hidden_act": with_config(vision_config__hidden_act="gelu"),
    "tower.layer_norm_eps": with_config(vision_config__layer_norm_eps=1e-3),
    "tower.heads": with_config(vision_config__num_attention_heads=4),
    "layer": with_config(vision_feature_layer=-3),
    "preprocessing.mean": with_preprocessor(image_mean=[0.5, 0.5, 0.5]),
    "preprocessing.std": with_preprocessor(image_std=[0.5, 0.5, 0.5]),
    "clip_space.projection_sha256": partial(joint_space, seed=1),
}
"""Fields that a file of the checkpoint changes."""

BY_PROGRAM: dict[str, Callable[[], Any]] = {
    "schema_version": lambda: patched(pipeline.encode, "SCHEMA_VERSION", 0),
    "decoder.decord": lambda: versions(decord="9"),
    "decoder.pyav": lambda: versions(av="9"),
    "pixels.resize": lambda: patched(pipeline.decode, "RESIZE", {**pipeline.decode.RESIZE, "resize": "other"}),
    "pixels.crop": lambda: patched(pipeline.decode, "RESIZE", {**pipeline.decode.RESIZE, "crop": "other"}),
    "pixels.version": lambda: patched(pipeline.decode, "RESIZE", {**pipeline.decode.RESIZE, "version": 2}),
    "reducer.version": lambda: patched(Spatial, "version", 99),
}
"""Fields that only another version of this program or of a library changes."""

OTHER_SIDE = "preprocessing.side_px"
"""Another side needs another tower, which is tested apart."""

FIXED = {"kind", "clip_space.dtype"}
"""Fields with one value: what tells an encode spec from an answer spec, and the type of joint-space vectors."""


def test_every_field_of_the_spec_is_walked(model: str) -> None:
    """Whoever adds a field to the spec says here what changes it, and so proves that it does."""
    spec = spec_of(job("c", "s", model, clip_space=True))
    assert set(leaves(spec)) == {*BY_FLAG, *BY_FILE, *BY_PROGRAM, OTHER_SIDE, *FIXED}


@pytest.mark.parametrize("field", [*BY_FLAG, *BY_FILE, *BY_PROGRAM])
def test_an_entry_of_another_spec_is_never_served(model: str, filled: Path, tmp_path: Path, field: str) -> None:
    """Change one field: the fingerprint is another, the old entry is not in its index, the video is encoded again."""
    changed_model = shutil.copytree(model, tmp_path / "model")
    store = shutil.copytree(filled, tmp_path / "store")
    before = spec_of(job(CLIP, store, model, clip_space=True))
    if field in BY_FILE:
        BY_FILE[field](changed_model)
    changed = job(CLIP, store, changed_model, clip_space=True, **BY_FLAG.get(field, {}))
    with BY_PROGRAM.get(field, nullcontext)():
        after = spec_of(changed)
        changes = {name for name in {*leaves(before), *leaves(after)} if leaves(before).get(name) != leaves(after).get(name)}
        assert changes == {field} or (field == "reducer.name" and field in changes)
        fresh = TokenStore.create(str(store), after)
        assert fresh.ids() == []
        assert encoded_by(changed) == [1, 0, 0]
    with pytest.raises(ConfigError, match="more than one fingerprint"):
        TokenStore.open(str(store))
    assert TokenStore.open(str(store), fingerprint(before)).ids() == TokenStore.open(str(store), fingerprint(after)).ids()


def test_another_side_of_the_frames_is_another_spec(model: str, tmp_path: Path) -> None:
    """The tower cannot take such frames, so nothing can be encoded, and nothing old is served."""
    changed = Path(shutil.copytree(model, tmp_path / "model"))
    (changed / "preprocessor_config.json").write_text(json.dumps({"crop_size": {"height": 24, "width": 24}}))
    before, after = (spec_of(job("c", "s", path)) for path in (model, changed))
    assert {name for name, value in leaves(before).items() if leaves(after).get(name) != value} == {OTHER_SIDE}
    assert fingerprint(before) != fingerprint(after)


@pytest.mark.parametrize("name", names())
def test_every_parameter_of_every_reducer_is_in_the_spec(name: str) -> None:
    """With the value it has, or has by default."""
    described = describe(parse(name))
    assert (described["name"], set(described["params"])) == (name, set(parameters(name)))
    assert described["version"] >= 1


def padded(video: str, size: int) -> bytes:
    """The bytes of a video, filled up with a box that no decoder reads."""
    content = (VIDEOS / video).read_bytes()
    return content + (size - len(content)).to_bytes(4, "big") + b"free" + bytes(size - len(content) - 8)


def put(folder: str, name: str, content: bytes, options: dict[str, Any]) -> None:
    fs, root = open_root(folder, options)
    fs.makedirs(f"{root}/{name}".rsplit("/", 1)[0], exist_ok=True)
    fs.pipe_file(f"{root}/{name}", content)


def test_a_video_replaced_under_its_name_is_encoded_again(model: str, place: Place) -> None:
    """The new one has the same size; on local disk its time tells, on object storage its ETag."""
    url, options = place
    one, other = (padded(name, 800_000) for name in ("testsrc2.mp4", "unordered.mov"))
    put(f"{url}/clips", "v.mp4", one, options)
    a_job = job(f"{url}/clips", f"{url}/store", model, storage_options=json.dumps(options))
    assert encoded_by(a_job) == [1, 0, 0]
    old = TokenStore.open(f"{url}/store", storage_options=options).read("v")
    put(f"{url}/clips", "v.mp4", other, options)
    assert encoded_by(a_job) == [1, 0, 0]
    new = TokenStore.open(f"{url}/store", storage_options=options).read("v")
    assert new.source_sha256 == hashlib.sha256(other).hexdigest() != old.source_sha256
    assert new.features.tobytes() != old.features.tobytes()
    assert encoded_by(a_job) == [0, 0, 0]


def test_a_renamed_video_is_served_by_content_when_asked(model: str, place: Place) -> None:
    """Nothing is decoded, no shard is written, and the tokens are read under the new id; by name it is encoded again."""
    url, options = place
    content = (VIDEOS / "testsrc2.mp4").read_bytes()
    put(f"{url}/clips", "old.mp4", content, options)
    put(f"{url}/clips", "other.mov", (VIDEOS / "unordered.mov").read_bytes(), options)
    by_name = job(f"{url}/clips", f"{url}/store", model, storage_options=json.dumps(options))
    assert encoded_by(by_name) == [2, 0, 0]
    fs, root = open_root(url, options)
    fs.rm_file(f"{root}/clips/old.mp4")
    put(f"{url}/clips", "below/new.mp4", content, options)
    before = fs.find(f"{root}/store/tokens")
    by_content = replace(by_name, identity="content")
    assert encoded_by(by_content) == [0, 1, 0]
    assert encoded_by(by_content) == encoded_by(by_name) == [0, 0, 0]
    assert fs.find(f"{root}/store/tokens") == before
    store = TokenStore.open(f"{url}/store", storage_options=options)
    assert store.ids() == ["below/new", "old", "other"]
    assert store.payloads()["below/new"] == store.payloads()["old"] != store.payloads()["other"]
    assert store.read("below/new").features.tobytes() == store.read("old").features.tobytes()
    assert verify(fs, f"{root}/store").problems == []
    put(f"{url}/clips", "third.mp4", content, options)
    assert encoded_by(by_name) == [1, 0, 0]


def test_files_that_were_only_touched_are_not_encoded_again_by_content(model: str, tmp_path: Path) -> None:
    """Restored from a backup, say: another time, the same bytes; what did change is encoded."""
    clips = tmp_path / "clips"
    clips.mkdir()
    for name in "ab":
        (clips / f"{name}.mp4").write_bytes(padded("testsrc2.mp4", 800_000 + ord(name)))
    by_content = job(clips, tmp_path / "store", model, identity="content")
    assert encoded_by(by_content) == [2, 0, 0]
    os.utime(clips / "a.mp4", (1, 1))
    (clips / "b.mp4").write_bytes(padded("unordered.mov", 800_000 + ord("b")))
    assert encoded_by(by_content) == [1, 1, 0]
    store = TokenStore.open(str(tmp_path / "store"))
    assert store.index.get("a")["stored_id"] is None
    assert store.read("b").source_sha256 == hashlib.sha256((clips / "b.mp4").read_bytes()).hexdigest()
    assert encoded_by(by_content) == [0, 0, 0]


def test_a_name_that_has_a_new_content_does_not_take_the_other_names_with_it(model: str, tmp_path: Path) -> None:
    """A renamed to B, then another video under A: B keeps the old tokens, A has new ones, and care keeps both."""
    clips, root = tmp_path / "clips", tmp_path / "store"
    clips.mkdir()
    (clips / "a.mp4").write_bytes(padded("testsrc2.mp4", 800_000))
    by_content = job(clips, root, model, identity="content")
    assert encoded_by(by_content) == [1, 0, 0]
    first = TokenStore.open(str(root)).read("a").features.tobytes()
    (clips / "a.mp4").rename(clips / "b.mp4")
    assert encoded_by(by_content) == [0, 1, 0]
    (clips / "a.mp4").write_bytes(padded("unordered.mov", 800_000))
    assert encoded_by(by_content) == [1, 0, 0]
    compact(TokenStore.open(str(root)))
    fs, path = open_root(str(root))
    gc(fs, path, now=time.time() + 1e6)
    store = TokenStore.open(str(root))
    assert store.read("b").features.tobytes() == first != store.read("a").features.tobytes()
    report = verify(fs, path)
    assert (report.problems, report.orphans, report.entries) == ([], 0, 2)


def test_names_of_one_content_are_cared_for_together(model: str, tmp_path: Path) -> None:
    """Compaction moves their entry once, damage takes all of them out, and one is encoded again for all."""
    clips, root = tmp_path / "clips", tmp_path / "store"
    clips.mkdir()
    content = (VIDEOS / "testsrc2.mp4").read_bytes()
    by_content = job(clips, root, model, identity="content")
    for name in ("a", "b", "c"):
        (clips / f"{name}.mp4").write_bytes(content if name != "c" else (VIDEOS / "unordered.mov").read_bytes())
        run(by_content)
    fs, path = open_root(str(root))
    assert compact(TokenStore.open(str(root)))["shards_written"] == 1
    gc(fs, path, now=time.time() + 1e6)
    (shard,) = fs.find(f"{path}/tokens")
    assert pq.ParquetFile(shard).metadata.num_rows == 2
    store = TokenStore.open(str(root))
    row = store.index.get("b")
    truth = store.read("b").features.tobytes()
    assert row["stored_id"] == "a"
    damaged = bytearray(Path(shard).read_bytes())
    damaged[row["offset"] + 200] ^= 1
    Path(shard).write_bytes(bytes(damaged))
    assert sorted(verify(fs, path).damaged) == ["a", "b"]
    assert sorted(repair(fs, path).entries) == ["a", "b"]
    assert TokenStore.open(str(root)).ids() == ["c"]
    assert encoded_by(by_content) == [2, 0, 0]
    gc(fs, path, now=time.time() + 1e6)
    assert verify(fs, path).problems == []
    assert TokenStore.open(str(root)).read("b").features.tobytes() == truth


def test_a_segment_never_stands_for_its_file(model: str, tmp_path: Path) -> None:
    """Both have the digest of the file; what was encoded in segments is encoded whole when it is asked for whole."""
    clips, root = tmp_path / "clips", tmp_path / "store"
    clips.mkdir()
    (clips / "a.mp4").write_bytes((VIDEOS / "testsrc2.mp4").read_bytes())
    by_name = job(clips, root, model)
    parts = encoded_by(replace(by_name, segments=0.5))[0]
    assert parts >= 2
    assert encoded_by(replace(by_name, identity="content")) == [1, 0, 0]
    store = TokenStore.open(str(root))
    assert store.read("a").payload_sha256 not in {store.payloads()[name] for name in store.ids() if name != "a"}


def test_what_is_served_by_content_is_listed_without_secrets(model: str, tmp_path: Path) -> None:
    """A signed URL is stored without its signature, as that of an encoded video is."""
    clips, store = tmp_path / "clips", tmp_path / "store"
    clips.mkdir()
    content = (VIDEOS / "testsrc2.mp4").read_bytes()
    (clips / "a.mp4").write_bytes(content)
    run(job(clips, store, model))
    listed = tmp_path / "list.jsonl"
    with http_server({"/new.mp4": content}) as (url, _):
        listed.write_text(json.dumps({"video_id": "b", "uri": f"{url}/new.mp4?X-Amz-Signature=s3cr3t"}))
        assert encoded_by(job(listed, store, model, identity="content")) == [0, 1, 0]
    assert TokenStore.open(str(store)).index.get("b")["uri"] == f"{url}/new.mp4?X-Amz-Signature=***"


def test_questions_are_joined_by_the_new_name(model: str, tmp_path: Path) -> None:
    """`framefold encode --identity content`, then `framefold answer`: nothing but the index knows of the old name."""
    clips, store, out = tmp_path / "clips", str(tmp_path / "store"), str(tmp_path / "out")
    clips.mkdir()
    (clips / "old.mov").write_bytes((VIDEOS / "unordered.mov").read_bytes())
    run(job(clips, store, model))
    (clips / "old.mov").rename(clips / "new.mov")
    where = ["--store", store, "--model", model, "--runner", "local"]
    told = framefold("encode", str(clips), *where, "--reducer", REDUCER, "--identity", "content")
    assert (told["committed"], told["same_content"], told["exit_code"]) == (1, 1, 0)
    asked = {"video_id": "new", "question": "what is it", "question_id": "1"}
    (tmp_path / "q.jsonl").write_text(json.dumps(asked))
    assert framefold("answer", str(tmp_path / "q.jsonl"), *where, "--out", out)["statuses"] == {"ok": 1}


def framefold(*args: str) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "jobs.cli", *args]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.stdout, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found
