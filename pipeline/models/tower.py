"""The vision tower: frames to visual tokens, with what reducers need captured on the way.

Attention maps are never asked for. The rows that reducers want are formed from the outputs of the query and key
projections, which forward hooks take while the block computes them anyway, so a capture costs next to nothing.

Shapes: F frames, T = 1 + N rows with CLS first, N patches, D width, S px side.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.contact_sheet import sheet_scores
from pipeline.models.token_merging import merge_blocks
from reducers.base import Capture, ReducedTokens, Reducer, ReducerError, TowerReducer, VisualTokens
from reducers.ops.attention import cls_attention, mean_over_heads

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def blocks_to_run(layers: int, layer: int) -> int:
    """Return how many blocks lead to a selected hidden state, given as transformers counts: -2 is L - 1 blocks."""
    run = layer if layer >= 0 else layers + 1 + layer
    if not 1 <= run <= layers:
        raise ConfigError(f"expected a hidden state from 1 to {layers} (or -{layers} to -1), got {layer}")
    return run


def check_captures(needs: frozenset[Capture], layers: int, layer: int) -> int:
    """Return how many of `layers` blocks run up to a selected hidden state.

    Raises ConfigError where there is no such hidden state, or captures need the block behind it and there is none.
    """
    run = blocks_to_run(layers, layer)
    if "next" in {need.block for need in needs} and run == layers:
        raise ConfigError(f"layer {layer} is the last one: no block consumes it, so its attention cannot be captured")
    return run


def capture_tower(
    model: Any, pixels: Tensor, needs: frozenset[Capture], layer: int = -2
) -> tuple[Tensor, dict[Capture, Tensor]]:
    """Run a CLIP vision model up to the selected hidden state and take what is needed.

    Args:
        model: a transformers CLIPVisionModel (Any: its blocks are untyped), whatever its attention implementation.
        pixels: (F, 3, S, S), normalised, in the model's dtype.
        needs: what to capture.
        layer: selected hidden state, as transformers counts them.

    Returns:
        Hidden rows (F, T, D) and the captures; attention and keys in float32.
    """
    blocks = list(model.encoder.layers)
    run = check_captures(needs, len(blocks), layer)
    at = {"first": 0, "selected": run - 1, "next": run}
    watched = {at[need.block] for need in needs if need.block != "next"}
    with _projections(blocks, watched) as seen:
        hidden = model.pre_layrnorm(model.embeddings(pixels))
        for block in blocks[:run]:
            hidden = block(hidden, None)
    if any(need.block == "next" for need in needs):
        normed = blocks[run].layer_norm1(hidden)
        attention = blocks[run].self_attn
        seen[run] = attention.q_proj(normed[:, :1]), attention.k_proj(normed)
    return hidden, {need: _capture(need, *seen[at[need.block]], _heads(blocks[0])) for need in needs}


def _heads(block: Any) -> int:
    """Return the number of heads. Any: the blocks of transformers are untyped."""
    return int(block.self_attn.num_heads)


@contextmanager
def _projections(blocks: list[Any], watched: set[int]) -> Iterator[dict[int, tuple[Tensor, Tensor]]]:
    """Collect queries and keys (F, T, D) of some blocks while they run."""
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    taken: dict[tuple[int, str], Tensor] = {}

    def keep(number: int, which: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            taken[number, which] = output
            if (number, "q") in taken and (number, "k") in taken:
                seen[number] = taken[number, "q"], taken[number, "k"]

        return hook

    handles = [
        getattr(blocks[number].self_attn, f"{which}_proj").register_forward_hook(keep(number, which))
        for number in watched
        for which in ("q", "k")
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _capture(need: Capture, q_FTD: Tensor, k_FTD: Tensor, heads: int) -> Tensor:
    if need.kind == "cls_attn":
        return cls_attention(q_FTD[:, 0], k_FTD, heads, need.heads)
    if need.kind == "received":
        raise ConfigError("this tower has a CLS token: ask for its attention rather than for attention received")
    return mean_over_heads(k_FTD[:, 1:], heads) if need.heads == "mean" else k_FTD[:, 1:].float()


class Tower:
    """The video tower of a Video-LLaVA checkpoint, without the language model, on one device."""

    def __init__(self, checkpoint: Checkpoint, *, device: str, dtype: str, layer: int | None = None) -> None:
        self.device = torch.device(device)
        self.dtype = DTYPES[dtype]
        self.model = checkpoint.load_tower().to(self.device, self.dtype).eval()
        self.layer = checkpoint.layer if layer is None else layer
        shown = checkpoint.preprocessing()
        self.side_px = shown.side_px
        self.grid = checkpoint.tower_shape().grid
        self._mean = torch.tensor(shown.mean, device=self.device)
        self._std = torch.tensor(shown.std, device=self.device)

    @torch.inference_mode()
    def __call__(self, frames_FSSC: Tensor, needs: frozenset[Capture], clip_ptr: Tensor, max_frames: int = 64) -> VisualTokens:
        """Return visual tokens of uint8 frames (F, S, S, 3), at most `max_frames` at a time through the tower."""
        sheets = frozenset(need for need in needs if need.kind == "sheet")
        parts = [self._run(some, needs - sheets) for some in frames_FSSC.split(max_frames)]
        hidden = torch.cat([part for part, _ in parts])
        side = int((hidden.shape[1] - 1) ** 0.5)
        captures = {need: torch.cat([taken[need] for _, taken in parts]) for need in needs - sheets}
        for need in sheets:
            captures[need] = sheet_scores(self.model, self._pixels(frames_FSSC), clip_ptr, (side, side))
        return VisualTokens(
            features=hidden[:, 1:],
            cls=hidden[:, 0],
            grid=(side, side),
            clip_ptr=clip_ptr.to(self.device),
            captures=captures,
        )

    @torch.inference_mode()
    def merged(self, frames_FSSC: Tensor, reducer: Reducer, clip_ptr: Tensor, max_frames: int = 64) -> ReducedTokens:
        """Return what token merging inside the tower leaves of uint8 frames (F, S, S, 3).

        Raises ReducerError, also for a reducer that does not work inside the tower.
        """
        if not isinstance(reducer, TowerReducer):
            raise ReducerError(f"{reducer.name} does not work inside the tower: it lacks schedule, reduced or prop_attn")
        blocks = list(self.model.encoder.layers)
        blocks = blocks[: blocks_to_run(len(blocks), self.layer)]
        parts = []
        for some in frames_FSSC.split(max_frames):
            hidden = self.model.pre_layrnorm(self.model.embeddings(self._pixels(some)))
            steps = reducer.schedule(hidden.shape[1] - 1, len(blocks))
            parts.append(merge_blocks(blocks, hidden, steps, prop_attn=reducer.prop_attn))
        rows, size, slot = (torch.cat([getattr(part, name) for part in parts]) for name in ("rows", "size", "slot"))
        patches = slot.shape[1] - 1
        side = int(patches**0.5)
        # Only the shape of these features is looked at: what was there before is merged already.
        before = rows[:, :1].expand(-1, patches, -1)
        seen = VisualTokens(features=before, cls=None, grid=(side, side), clip_ptr=clip_ptr.to(self.device), captures={})
        return reducer.reduced(seen, rows[:, 1:], size[:, 1:], slot[:, 1:] - 1)

    def _pixels(self, frames_FSSC: Tensor) -> Tensor:
        """Return pixels (F, 3, S, S), normalised, from uint8 frames."""
        pixels = frames_FSSC.to(self.device, non_blocking=True).float() / 255
        return ((pixels - self._mean) / self._std).permute(0, 3, 1, 2).to(self.dtype)

    def _run(self, frames_FSSC: Tensor, needs: frozenset[Capture]) -> tuple[Tensor, dict[Capture, Tensor]]:
        return capture_tower(self.model, self._pixels(frames_FSSC), needs, self.layer)
