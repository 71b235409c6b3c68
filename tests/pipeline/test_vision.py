"""The tower gives what transformers' eager run gives: features, CLS rows, attention and keys."""

from itertools import product
from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionModel, VideoLlavaForConditionalGeneration

from pipeline.errors import ConfigError
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.tower import Tower, blocks_to_run, capture_tower
from reducers.base import Capture
from tests.models import tiny_checkpoint, vision_config

WANTED = frozenset(
    {
        *(Capture(kind="cls_attn", block=block, heads=heads) for block, heads in product(
            ("selected", "next", "first"), ("sum", "mean", "concat"))),
        Capture(kind="keys", block="selected", heads="mean"),
        Capture(kind="keys", block="next", heads="concat"),
    }
)  # fmt: skip


def model(layers: int = 4, **changes: int) -> CLIPVisionModel:
    torch.manual_seed(3)
    made = CLIPVisionModel(vision_config(num_hidden_layers=layers, **changes)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.4)
    return made


@torch.inference_mode()
def eager(made: CLIPVisionModel, pixels: torch.Tensor, layer: int = -2):
    """transformers' own run with attention maps, and the keys of every block by a hook."""
    made.set_attn_implementation("eager")
    keys: list[torch.Tensor] = []
    hooks = [b.self_attn.k_proj.register_forward_hook(lambda _, __, out: keys.append(out)) for b in made.encoder.layers]
    out = made(pixels, output_attentions=True, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    return out.hidden_states[layer], out.attentions, keys


@pytest.mark.parametrize("layer", [-2, -3, 2])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_features_and_captures_equal_the_eager_run(layer: int, attention: str) -> None:
    """Every capture that reducers ask for, against attention maps that transformers computes itself."""
    made = model()
    pixels = torch.randn(5, 3, 32, 32)
    hidden, attentions, keys = eager(made, pixels, layer)
    made.set_attn_implementation(attention)
    ours, taken = capture_tower(made, pixels, WANTED, layer)
    close = 1e-5 if attention == "eager" else 3e-4  # the same sums in another order, through random weights of size 0.4
    torch.testing.assert_close(ours, hidden, atol=close, rtol=close)
    run = blocks_to_run(4, layer)
    at = {"first": 0, "selected": run - 1, "next": run}
    for need, value in taken.items():
        if need.kind == "keys":
            expected = keys[at[need.block]][:, 1:]
            if need.heads == "mean":
                expected = expected.unflatten(-1, (2, -1)).mean(-2)
        elif need.heads == "concat":
            continue
        else:
            rows = attentions[at[need.block]][:, :, 0, 1:]
            expected = rows.sum(1) if need.heads == "sum" else rows.mean(1)
        torch.testing.assert_close(value, expected, atol=close, rtol=close)


def test_heads_side_by_side_are_scaled_by_the_whole_width() -> None:
    """PruMerge's attention: one softmax over q.k * D**-0.5, CLS column dropped after it."""
    made = model()
    pixels = torch.randn(2, 3, 32, 32)
    need = Capture(kind="cls_attn", block="next", heads="concat")
    _, taken = capture_tower(made, pixels, frozenset({need}))
    hidden, _, _ = eager(made, pixels)
    last = made.encoder.layers[-1]
    with torch.inference_mode():
        rows = last.layer_norm1(hidden)
        q, k = last.self_attn.q_proj(rows[:, :1]), last.self_attn.k_proj(rows)
        expected = ((q @ k.mT) * 32**-0.5).softmax(-1)[:, 0, 1:]
    torch.testing.assert_close(taken[need], expected, atol=1e-6, rtol=1e-4)


def test_blocks_after_the_needed_one_never_run() -> None:
    """The last block does not even when its attention is captured."""
    made = model()
    ran = []
    for number, block in enumerate(made.encoder.layers):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    capture_tower(made, torch.randn(1, 3, 32, 32), WANTED)
    assert ran == [0, 1, 2]


def test_no_hook_is_left_behind() -> None:
    """Not even when a block fails."""
    made = model()
    with pytest.raises(ValueError, match="size"):
        capture_tower(made, torch.randn(1, 3, 32, 40), WANTED)  # not the side that position embeddings are made for
    assert not any(block.self_attn.q_proj._forward_hooks for block in made.encoder.layers)


def test_a_layer_that_does_not_exist_is_refused() -> None:
    """As is the attention of a block after the last one."""
    for layer in (0, 9, -5):
        with pytest.raises(ConfigError):
            blocks_to_run(4, layer)
    with pytest.raises(ConfigError, match="no block consumes it"):
        capture_tower(model(), torch.randn(1, 3, 32, 32), WANTED, -1)


def test_the_tower_of_a_checkpoint_equals_get_video_features(tmp_path: Path) -> None:
    """From uint8 frames to the rows that the projector takes, however the frames are batched."""
    path = tiny_checkpoint(tmp_path / "m")
    checkpoint = Checkpoint.open(path)
    tower = Tower(checkpoint, device="cpu", dtype="float32")
    frames = torch.randint(0, 256, (16, 32, 32, 3), dtype=torch.uint8)
    whole = VideoLlavaForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval()
    shown = checkpoint.preprocessing()
    pixels = ((frames.float() / 255 - torch.tensor(shown.mean)) / torch.tensor(shown.std)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        videos = pixels.unflatten(0, (2, 8))
        projected = whole.model.get_video_features(pixel_values_videos=videos).pooler_output
    for at_once in (64, 3):
        seen = tower(frames, frozenset(), torch.tensor([0, 8, 16]), max_frames=at_once)
        assert seen.grid == (4, 4)
        rows = torch.cat([seen.cls[:, None], seen.features], dim=1)
        with torch.inference_mode():
            ours = whole.model.multi_modal_projector(rows)
        torch.testing.assert_close(ours.reshape(-1), projected.reshape(-1), atol=1e-4, rtol=1e-4)
