"""What reducers need from a tower besides features, and how attention and keys of any tower become that.

Shapes: V clips, F frames (of all clips together), N patches, D width, h heads.
"""

from dataclasses import dataclass
from itertools import product
from math import isqrt
from typing import Literal

import torch
from torch import Tensor

from reducers.errors import ReducerError

BLOCKS: tuple[Literal["selected", "next", "first"], ...] = ("selected", "next", "first")
HEADS: tuple[Literal["concat", "sum", "mean"], ...] = ("concat", "sum", "mean")
RANKED: tuple[Literal["cls_attn", "received"], ...] = ("cls_attn", "received")
SIDE_BY_SIDE: tuple[Literal["concat", "sum"], ...] = ("concat", "sum")
"""Ways to combine heads that leave keys as wide as features."""


@dataclass(frozen=True, kw_only=True)
class Capture:
    """What a reducer needs from the tower besides features.

    `block` is relative to the selected layer: `selected` produced it (L-2), `next` consumes it (L-1, of which only the first
    norm and the query and key projections are evaluated), `first` is block 0.
    """

    kind: Literal["cls_attn", "keys", "received", "sheet"]
    """cls_attn and received: (F, N) float32. keys: (F, N, D) when heads are concatenated, (F, N, d) when averaged.
    sheet: (F, 1) float32, CLS attention to the tile of each frame on a contact sheet of its clip."""
    block: Literal["selected", "next", "first"] = "selected"
    """The block whose queries and keys are read."""
    heads: Literal["concat", "sum", "mean"] = "sum"
    """concat: all heads side by side, as one. sum and mean: over heads, each by itself."""


def clips_of(features: Tensor, clip_ptr: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return features (F, N, D) and the bounds of their clips (V + 1,), from features (F, N, D) or (V, F, N, D).

    Raises ReducerError for another number of axes, integer features, or bounds beside an axis of clips.
    """
    if features.ndim not in (3, 4) or not features.is_floating_point():
        got = f"{tuple(features.shape)} of {features.dtype}"
        raise ReducerError(f"expected float features (F, N, D) or (V, F, N, D), got {got}")
    if features.ndim == 4:
        if clip_ptr is not None:
            raise ReducerError("clip_ptr is for features (F, N, D): those of shape (V, F, N, D) say where clips end")
        clips, frames = features.shape[:2]
        return features.flatten(0, 1), torch.arange(clips + 1, device=features.device) * frames
    if clip_ptr is not None:
        return features, _bounds(clip_ptr)
    return features, torch.tensor([0, len(features)], device=features.device)


def _bounds(clip_ptr: Tensor) -> Tensor:
    if clip_ptr.ndim != 1 or clip_ptr.dtype != torch.int64 or len(clip_ptr) < 2 or bool((clip_ptr.diff() < 1).any()):
        raise ReducerError(f"expected clip_ptr (V + 1,) of int64 that rises, got {clip_ptr.tolist()} of {clip_ptr.dtype}")
    return clip_ptr


def square(patches: int) -> tuple[int, int]:
    """Return rows and columns of a square of patches. Raises ReducerError where there is none."""
    side = isqrt(patches)
    if side * side != patches:
        raise ReducerError(f"{patches} patches are no square: pass grid=(rows, columns)")
    return side, side


def captured(shape: torch.Size, *, attention: Tensor | None, keys: Tensor | None, heads: int | None) -> dict[Capture, Tensor]:
    """Return the captures that attention (..., N) and keys (..., N, D) stand for, given F and N.

    Raises ReducerError for shapes that do not fit.
    """
    found: dict[Capture, Tensor] = {}
    if attention is not None:
        rows = frame_rows("attention", attention.float(), shape, 0)
        found |= {Capture(kind=k, block=b, heads=h): rows for k, b, h in product(RANKED, BLOCKS, HEADS)}
    if keys is not None:
        rows = frame_rows("keys", keys.float(), shape, 1)
        found |= {Capture(kind="keys", block=b, heads=h): rows for b, h in product(BLOCKS, SIDE_BY_SIDE)}
    if keys is not None and heads is not None:
        if heads < 1 or keys.shape[-1] % heads:
            raise ReducerError(f"expected heads that divide the width {keys.shape[-1]} of keys, got {heads}")
        mean = rows.unflatten(-1, (heads, -1)).mean(2)
        found |= {Capture(kind="keys", block=b, heads="mean"): mean for b in BLOCKS}
    return found


def frame_rows(name: str, values: Tensor, shape: torch.Size, more: int) -> Tensor:
    """Return values with the axis of clips flattened: (F, N), and `more` axes behind. Raises ReducerError."""
    rows = values.flatten(0, 1) if values.ndim == 3 + more else values
    if rows.ndim != 2 + more or rows.shape[:2] != shape:
        raise ReducerError(f"expected {name} of {shape[0]} frames and {shape[1]} patches, got {tuple(values.shape)}")
    return rows
