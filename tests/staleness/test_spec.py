"""Nothing stale: each field of the encode spec that changes makes another store."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import pipeline.decode.config
import pipeline.encode.stage
from pipeline.errors import ConfigError
from pipeline.fingerprint import fingerprint
from pipeline.store.token_store import TokenStore
from reducers.base import describe
from reducers.methods.grids import Spatial
from reducers.registry import names, parameters, parse
from tests.staleness.encoding import CLIP, encoded_by, job, joint_space, spec_of


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

    return patched(pipeline.decode.config, "version", lambda name: other.get(name) or version(name))


OTHER_METHOD = "sequential(k=4)"
"""Another name, and with it other parameters."""

BY_FLAG: dict[str, dict[str, Any]] = {
    "tower.revision": {"revision": "abc"},
    "sampling.policy": {"policy": "arange"},
    "sampling.frames": {"frames": 4},
    "decoder.decord": {"decoder": "decord"},
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
    "tower.blocks": with_config(vision_config__num_hidden_layers=3),
    "layer": with_config(vision_feature_layer=-3),
    "preprocessing.mean": with_preprocessor(image_mean=[0.5, 0.5, 0.5]),
    "preprocessing.std": with_preprocessor(image_std=[0.5, 0.5, 0.5]),
    "clip_space.projection_sha256": partial(joint_space, seed=1),
}
"""Fields that a file of the checkpoint changes."""

BY_PROGRAM: dict[str, Callable[[], Any]] = {
    "schema_version": lambda: patched(pipeline.encode.stage, "SCHEMA_VERSION", 0),
    "decoder.rule": lambda: patched(pipeline.decode.config, "RULE", 1),
    "pixels.pillow": lambda: versions(pillow="9"),
    "decoder.pyav": lambda: versions(av="9"),
    "pixels.resize": lambda: patched(pipeline.decode.config, "RESIZE", {**pipeline.decode.config.RESIZE, "resize": "other"}),
    "pixels.crop": lambda: patched(pipeline.decode.config, "RESIZE", {**pipeline.decode.config.RESIZE, "crop": "other"}),
    "pixels.version": lambda: patched(pipeline.decode.config, "RESIZE", {**pipeline.decode.config.RESIZE, "version": 1}),
    "reducer.version": lambda: patched(Spatial, "version", 99),
}
"""Fields that only another version of this program or of a library changes."""

OTHER_SIDE = "preprocessing.side_px"
"""Another side needs another tower, which is tested apart."""

FIXED = {"kind", "clip_space.dtype"}
"""Fields with one value: what tells an encode spec from an answer spec, and the type of joint-space vectors."""


def test_every_field_of_the_spec_is_walked(model: str) -> None:
    """Whoever adds a field to the spec says here what changes it, and so proves that it does."""
    specs = [spec_of(job("c", "s", model, clip_space=True, decoder=decoder)) for decoder in ("auto", "decord")]
    assert {name for spec in specs for name in leaves(spec)} == {*BY_FLAG, *BY_FILE, *BY_PROGRAM, OTHER_SIDE, *FIXED}


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
    with pytest.raises(ConfigError, match="several fingerprints"):
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
