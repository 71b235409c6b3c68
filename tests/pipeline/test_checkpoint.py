"""Which directories are taken for Video-LLaVA, and that digests depend on weights alone."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import ConfigError
from pipeline.models.checkpoint import CLIP_MEAN, CLIP_STD, Checkpoint
from pipeline.models.weights_digest import tensors_digest
from tests.models import tiny_checkpoint


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny"))


def test_a_checkpoint_is_opened_with_its_geometry(path: Path) -> None:
    """Layer and side come from the files, never from constants."""
    opened = Checkpoint.open(str(path))
    assert opened.layer == -2
    assert opened.preprocessing().side_px == 32
    assert opened.load_tower().config.hidden_size == 32


@pytest.mark.parametrize(
    ("given", "side"),
    [
        ({"crop_size": {"height": 24, "width": 24}, "size": {"shortest_edge": 48}}, 24),
        ({"crop_size": 24, "size": 48}, 24),
        ({"size": {"shortest_edge": 48}}, 48),
        ({"size": {"height": 48, "width": 48}}, 48),
        ({"size": 48}, 48),
        ({}, 32),
    ],
)
def test_the_side_of_a_frame_is_what_is_cropped_to(path: Path, tmp_path: Path, given: dict[str, object], side: int) -> None:
    """In every form that transformers has written it, else as the tower was built."""
    shutil.copytree(path, tmp_path / "model")
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(given))
    assert Checkpoint.open(str(tmp_path / "model")).preprocessing().side_px == side


def test_the_layer_is_the_last_but_one_where_nobody_says(path: Path, tmp_path: Path) -> None:
    """As Video-LLaVA was trained."""
    shutil.copytree(path, tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    for given, layer in (
        ({**config, "vision_feature_layer": -3}, -3),
        ({k: v for k, v in config.items() if "layer" not in k}, -2),
    ):
        (tmp_path / "model" / "config.json").write_text(json.dumps(given))
        assert Checkpoint.open(str(tmp_path / "model")).layer == layer


def test_mean_and_deviation_are_the_files_or_those_of_clip(path: Path, tmp_path: Path) -> None:
    """Each by itself."""
    shutil.copytree(path, tmp_path / "model")
    opened = Checkpoint.open(str(tmp_path / "model"))
    (tmp_path / "model" / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3]}')
    assert (opened.preprocessing().mean, opened.preprocessing().std) == ((0.1, 0.2, 0.3), CLIP_STD)
    (tmp_path / "model" / "preprocessor_config.json").write_text('{"image_std": [0.1, 0.2, 0.3]}')
    assert (opened.preprocessing().mean, opened.preprocessing().std) == (CLIP_MEAN, (0.1, 0.2, 0.3))


def test_digests_tell_apart_what_has_the_same_bytes() -> None:
    """Another name, type or shape of the same numbers is another tensor; so are two tensors where one ended elsewhere."""
    zeros = torch.zeros(4, 2)
    given = [
        [("a", zeros)], [("b", zeros)], [("a", zeros.view(2, 4))], [("a", zeros.int())],
        [("a", zeros.half()), ("b", zeros.half())], [("a", zeros[:2]), ("a", zeros[2:])], [("a", zeros), ("b", zeros[:0])],
    ]  # fmt: skip
    assert len({tensors_digest(one) for one in given}) == len(given)


def test_digests_do_not_depend_on_sharding_or_style_of_names(path: Path, tmp_path: Path) -> None:
    """Split in two files with an index and renamed to the older keys: the same tower."""
    other = tmp_path / "other"
    shutil.copytree(path, other)
    weights = {_older(name): tensor for name, tensor in load_file(other / "model.safetensors").items()}
    (other / "model.safetensors").unlink()
    halves = sorted(weights)[::2], sorted(weights)[1::2]
    placed = {}
    for number, names in enumerate(halves):
        save_file({name: weights[name] for name in names}, other / f"part{number}.safetensors", {"format": "pt"})
        placed |= dict.fromkeys(names, f"part{number}.safetensors")
    (other / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    one, two = Checkpoint.open(str(path)), Checkpoint.open(str(other))
    assert one.tower_digest() == two.tower_digest()
    assert one.llm_digest() == two.llm_digest()
    assert one.tower_digest() != one.llm_digest()


def _older(name: str) -> str:
    name = name.removeprefix("model.")
    marker = "video_tower."
    return name.replace(marker, f"{marker}vision_model.") if "vision_model" not in name else name


def test_one_changed_weight_changes_only_the_digest_it_belongs_to(path: Path, tmp_path: Path) -> None:
    """A fine-tuned language model can go on using a store; a fine-tuned tower cannot."""
    for part, same, other in (("video_tower", "llm_digest", "tower_digest"), ("lm_head", "tower_digest", "llm_digest")):
        changed = tmp_path / part
        shutil.copytree(path, changed)
        weights = load_file(changed / "model.safetensors")
        name = next(name for name in sorted(weights) if part in name)
        weights[name].view(-1)[0] += 1
        save_file(weights, changed / "model.safetensors", {"format": "pt"})
        before, after = Checkpoint.open(str(path)), Checkpoint.open(str(changed))
        assert getattr(before, same)() == getattr(after, same)()
        assert getattr(before, other)() != getattr(after, other)()


def test_what_is_not_video_llava_is_refused_in_one_line(path: Path, tmp_path: Path) -> None:
    """Each message says what was expected and what came."""
    empty = tmp_path / "empty"
    empty.mkdir()
    llama = tmp_path / "llama"
    llama.mkdir()
    (llama / "config.json").write_text('{"model_type": "llama"}')
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    pickled = tmp_path / "pickled"
    shutil.copytree(path, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    damaged = tmp_path / "damaged"
    shutil.copytree(path, damaged)
    (damaged / "model.safetensors").write_bytes(b"x" * 100)
    listed = tmp_path / "listed"
    listed.mkdir()
    (listed / "config.json").write_text("[]")
    towerless = tmp_path / "towerless"
    shutil.copytree(path, towerless)
    weights = load_file(towerless / "model.safetensors")
    save_file({name: one for name, one in weights.items() if "video_tower" not in name}, towerless / "model.safetensors")
    lost = tmp_path / "lost"
    shutil.copytree(path, lost)
    (lost / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "part7.safetensors"}}))
    said = {
        listed: "model_type video_llava",
        towerless: "tensors of a video tower",
        lost: "part7.safetensors, which is not there",
    }
    said |= {
        empty: "config.json",
        llama: "'llama'",
        broken: "JSON",
        pickled: "pickled weights are not read",
        damaged: "cannot be read",
    }
    for folder, words in said.items():
        with pytest.raises(ConfigError) as caught:
            Checkpoint.open(str(folder))
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_tower_without_all_its_weights_is_refused(path: Path, tmp_path: Path) -> None:
    """Random numbers in place of a lost tensor would be stored as if they were features."""
    changed = tmp_path / "lost"
    shutil.copytree(path, changed)
    weights = load_file(changed / "model.safetensors")
    lost = next(name for name in sorted(weights) if "video_tower" in name and "fc1" in name)
    save_file({name: t for name, t in weights.items() if name != lost}, changed / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match="missing"):
        Checkpoint.open(str(changed)).load_tower()


def test_no_gradient_and_no_other_tower_is_loaded(path: Path) -> None:
    """The language model stays on disk."""
    tower = Checkpoint.open(str(path)).load_tower()
    assert sum(p.numel() for p in tower.parameters()) < 60_000
    assert next(tower.parameters()).dtype == torch.float32
