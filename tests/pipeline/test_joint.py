"""The joint image-text space: which directories are taken for one, and how a question becomes a vector."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import ConfigError
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.clip_space import JointSpace

SHAPES = Path(__file__).parents[2] / "pipeline" / "synthetic" / "checkpoint"
OPENED = Checkpoint.open(str(SHAPES))


@pytest.fixture
def tower(tmp_path: Path) -> Path:
    """A text tower that lies by itself, with a tokeniser of its own."""
    folder = Path(shutil.copytree(SHAPES / "text_tower", tmp_path / "tower"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(SHAPES / name, folder)
    return folder


@pytest.fixture(scope="module")
def space() -> JointSpace:
    return JointSpace.open(OPENED)


def whole(folder: Path, change: float = 0.0) -> None:
    """Make it a whole CLIPModel in one file: the text tower, the visual projection and the checkpoint's vision tower."""
    tensors = load_file(folder / "model.safetensors")
    tensors["visual_projection.weight"] = load_file(folder / "visual_projection.safetensors")["weight"]
    for name, tensor in OPENED.tower_tensors():
        tensors[f"vision_model.{name}"] = tensor.clone()
    tensors[max(name for name in tensors if name.startswith("vision_model."))].view(-1)[0] += change
    (folder / "visual_projection.safetensors").unlink()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def narrower(folder: Path) -> None:
    weight = load_file(folder / "visual_projection.safetensors")["weight"]
    save_file({"weight": weight[:, 1:].contiguous()}, folder / "visual_projection.safetensors")


def flat(folder: Path) -> None:
    weight = load_file(folder / "visual_projection.safetensors")["weight"]
    save_file({"weight": weight[0].contiguous()}, folder / "visual_projection.safetensors")


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "expected a CLIP text tower with config.json"),
    "no projection": (lambda folder: (folder / "visual_projection.safetensors").unlink(), "visual projection beside"),
    "a projection of another width": (narrower, "expected a visual projection"),
    "a projection that is no matrix": (flat, "expected a visual projection"),
    "another vision tower": (lambda folder: whole(folder, 1.0), "is not the checkpoint's"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_directory_that_cannot_belong_to_the_tower_is_refused(tower: Path, name: str) -> None:
    """In one line, when it is opened."""
    change, said = WRONG[name]
    change(tower)
    with pytest.raises(ConfigError, match=said) as caught:
        JointSpace.open(OPENED, str(tower))
    assert "\n" not in str(caught.value)


def test_a_whole_model_with_the_same_tower_is_the_same_space(tower: Path, space: JointSpace) -> None:
    """Its projection lies among the other weights."""
    whole(tower)
    found = JointSpace.open(OPENED, str(tower))
    assert torch.equal(found.projection_PD, space.projection_PD)
    assert found.visual_digest() == space.visual_digest()
    assert torch.equal(found.embed(["where is it ?"]), space.embed(["where is it ?"]))


def test_rows_are_normed_as_the_tower_ends_before_they_are_projected(space: JointSpace) -> None:
    """Any number of leading axes, float32."""
    model = OPENED.load_tower().float()
    rows = torch.randn(2, 3, OPENED.tower_shape().width, generator=torch.Generator().manual_seed(0)) * 3 + 1
    found = space.project(model, rows)
    normed = torch.nn.functional.layer_norm(
        rows, rows.shape[-1:], model.post_layernorm.weight, model.post_layernorm.bias, model.post_layernorm.eps
    )
    torch.testing.assert_close(found, normed @ space.projection_PD.T)
    assert found.dtype == torch.float32


def test_questions_are_embedded_alone_and_without_outer_blanks(space: JointSpace) -> None:
    """Company in a batch changes no bit; white space is one space."""
    questions = ["where is the red circle ?", "how many ?"]
    together = space.embed(questions)
    assert torch.equal(together, torch.cat([space.embed([one]) for one in questions]))
    assert torch.equal(space.embed(["  how \n many   ?"]), together[1:])
    assert not torch.equal(together[0], together[1])


def test_a_long_question_is_cut_before_the_token_that_ends_it(space: JointSpace) -> None:
    """The vector is read at that token, so it must always be the last one, once."""
    model, tokenizer = space._text
    seen: list[list[int]] = []
    hook = model.register_forward_pre_hook(
        lambda _module, _args, given: seen.append(given["input_ids"][0].tolist()), with_kwargs=True
    )
    room = model.config.max_position_embeddings
    space.embed(["red", "circle " * 500])
    hook.remove()
    assert [ids.count(tokenizer.eos_token_id) for ids in seen] == [1, 1]
    assert [ids[-1] for ids in seen] == [tokenizer.eos_token_id] * 2
    assert (len(seen[0]) < room, len(seen[1])) == (True, room)


def test_a_tokeniser_that_ends_questions_itself_ends_them_once(tower: Path, space: JointSpace) -> None:
    """CLIP's own does, Llama's does not: the same vector."""
    content = json.loads((SHAPES / "tokenizer.json").read_text())
    end = space._text[1].eos_token
    content["post_processor"]["single"].append({"SpecialToken": {"id": end, "type_id": 0}})
    content["post_processor"]["special_tokens"][end] = {"id": end, "ids": [space._text[1].eos_token_id], "tokens": [end]}
    (tower / "tokenizer.json").write_text(json.dumps(content))
    other = JointSpace.open(OPENED, str(tower))
    assert other._text[1]("red")["input_ids"] == [*space._text[1]("red")["input_ids"], space._text[1].eos_token_id]
    for question in ("red circle", "circle " * 500):
        assert torch.equal(other.embed([question]), space.embed([question]))


def test_a_tokeniser_of_its_own_is_read_before_the_checkpoints(tower: Path, space: JointSpace) -> None:
    """With other words for the same ids a question is another one."""
    same = JointSpace.open(OPENED, str(tower))
    assert torch.equal(same.embed(["red circle"]), space.embed(["red circle"]))
    digest = same.text_digest()
    content = json.loads((tower / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["red"], vocabulary["circle"] = vocabulary["circle"], vocabulary["red"]
    (tower / "tokenizer.json").write_text(json.dumps(content))
    other = JointSpace.open(OPENED, str(tower))
    assert torch.equal(other.embed(["red circle"]), space.embed(["circle red"]))
    assert other.text_digest() != digest
