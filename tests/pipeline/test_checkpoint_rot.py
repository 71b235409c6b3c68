"""A checkpoint that a copy cut short or a hand changed is refused in one sentence before anything is written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from pipeline.errors import ConfigError
from pipeline.models.checkpoint import Checkpoint
from tests.models import tiny_checkpoint

Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(tiny_checkpoint(tmp_path_factory.mktemp("whole") / "tiny"))


def text(name: str, content: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).write_text(content)

    return change


def config(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        found = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**found, **changes}))

    return change


def vision(**changes: Any) -> Change:
    def change(folder: Path) -> None:
        found = json.loads((folder / "config.json").read_text())
        found["vision_config"] |= changes
        (folder / "config.json").write_text(json.dumps(found))

    return change


def halved(folder: Path) -> None:
    """The index is whole, the file that it names is not."""
    weights = folder / "model.safetensors"
    indexed(folder)
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def indexed(folder: Path, **more: str) -> None:
    with safe_open(folder / "model.safetensors", framework="pt") as opened:
        named = dict.fromkeys(opened.keys(), "model.safetensors")
    index = {"weight_map": {**named, **more}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


WRONG: dict[str, tuple[Change, str]] = {
    "config cut short": (text("config.json", "{"), "config.json is not JSON"),
    "frames cut short": (text("preprocessor_config.json", "{"), "preprocessor_config.json is not JSON"),
    "frames that are a list": (text("preprocessor_config.json", "[]"), "expected sizes"),
    "a size in words": (text("preprocessor_config.json", '{"crop_size": "big"}'), "expected sizes"),
    "means in words": (text("preprocessor_config.json", '{"image_mean": "x"}'), "expected sizes"),
    "one mean": (text("preprocessor_config.json", '{"image_mean": [0.5]}'), "three means"),
    "no deviation": (text("preprocessor_config.json", '{"image_std": [1, 1, 0]}'), "above 0"),
    "frames of another size": (text("preprocessor_config.json", '{"crop_size": 24}'), "takes frames of 32 px"),
    "a tower that is a word": (config(vision_config="clip"), "vision_config"),
    "a layer that is a word": (config(vision_feature_layer="last"), "vision_feature_layer"),
    "several layers": (config(vision_feature_layer=[-2, -1]), "vision_feature_layer"),
    "a width in words": (vision(hidden_size="wide"), "hidden_size"),
    "another width": (vision(hidden_size=48), "has the shape"),
    "no heads": (vision(num_attention_heads=0), "vision_config"),
    "heads that do not share": (vision(num_attention_heads=7), "vision_config"),
    "no patches": (vision(patch_size=0), "patches of 1 to 32 px"),
    "patches larger than frames": (vision(patch_size=64), "patches of 1 to 32 px"),
    "an activation of nobody": (vision(hidden_act="nope"), "activation"),
    "more blocks than weights": (vision(num_hidden_layers=9), "are missing"),
    "an index cut short": (text("model.safetensors.index.json", "{"), "is not JSON"),
    "an index without a map": (text("model.safetensors.index.json", "{}"), "weight_map"),
    "an index that is a list": (text("model.safetensors.index.json", "[]"), "weight_map"),
    "a tensor that is not there": (
        lambda folder: indexed(folder, **{"model.video_tower.x": "model.safetensors"}),
        "cannot be read",
    ),
    "half of the weights": (halved, "cannot be read"),
    "a pointer in the place of weights": (text("model.safetensors", "version https://git-lfs.github.com/\n"), "cannot be read"),
}


def used(folder: Path) -> None:
    """What an encode job does with a checkpoint."""
    opened = Checkpoint.open(str(folder))
    opened.spec()
    opened.load_tower()


@pytest.mark.parametrize("case", WRONG)
def test_a_checkpoint_that_is_wrong_is_refused_by_what_is_wrong_with_it(case: str, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    change, said = WRONG[case]
    change(folder)
    with pytest.raises(ConfigError) as caught:
        used(folder)
    assert said in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("name", ["", " ", "x" * 5000])
def test_a_name_that_is_no_path_is_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        Checkpoint.open(name)
