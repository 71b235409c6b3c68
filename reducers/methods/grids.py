"""The two baselines that look at nothing: the first patches of a frame, and an even grid over it."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from reducers.base import BudgetError, Capture, Fingerprinted, ReducedTokens, TextQuery, VisualTokens, check_finite
from reducers.ops.layout import frames_in_clip, keep_patches


def sequential_indices(patches: int, keep: int) -> Tensor:
    """Return the first `keep` patches (K,) in raster order, fewer where there are fewer."""
    return torch.arange(min(keep, patches))


def spatial_indices(
    grid: tuple[int, int],
    *,
    keep: int | None = None,
    shape: tuple[int, int] | None = None,
    anchor: Literal["start", "center"] = "start",
) -> Tensor:
    """Return the crossings (K,) of R rows and C columns spread over a grid, in raster order.

    Given only `keep`, the factorisation R x C whose shape is nearest to the grid's is taken; where none comes within a
    factor of two, every (N / keep)-th patch.

    Args:
        grid: gh, gw.
        keep: K, patches wanted.
        shape: R, C, instead of `keep`.
        anchor: which patch of a cell: its first, or its middle one.

    Source: docs/methods/frames.md section 5.2.
    """
    high, wide = grid
    middle = 0.5 if anchor == "center" else 0.0
    if shape is None and keep is not None and keep >= high * wide:
        return torch.arange(high * wide)
    shape = shape if shape is not None else _nearest_shape(grid, keep or 0)
    if shape is None:
        return torch.tensor([math.floor((i + middle) * high * wide / (keep or 1)) for i in range(keep or 0)])
    rows = torch.tensor([math.floor((i + middle) * high / shape[0]) for i in range(shape[0])])
    columns = torch.tensor([math.floor((j + middle) * wide / shape[1]) for j in range(shape[1])])
    return (rows[:, None] * wide + columns).flatten()


def _nearest_shape(grid: tuple[int, int], keep: int) -> tuple[int, int] | None:
    """Return R, C with R * C = keep; the smaller R where two are equally near (40 gives 5 x 8)."""
    best: tuple[int, int] | None = None
    best_gap = math.inf
    for rows in range(1, min(keep, grid[0]) + 1):
        columns = keep // rows
        if rows * columns != keep or columns > grid[1]:
            continue
        gap = abs(math.log(rows / columns * grid[1] / grid[0]))
        if gap < best_gap - 1e-9:
            best, best_gap = (rows, columns), gap
    return best if best_gap <= math.log(2) + 1e-12 else None


@dataclass(frozen=True, kw_only=True)
class SequentialConfig:
    """Parameters of `sequential`."""

    k: int = 32
    """Patches kept per frame (per clip with scope=clip)."""
    scope: Literal["frame", "clip"] = "frame"
    """clip: the first k patches of the flattened clip, so that only its first frames survive."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise BudgetError(f"expected k of at least 1, got {self.k}")


@dataclass(frozen=True)
class Sequential(Fingerprinted):
    """Keeps the first k patches of each frame in raster order: an ablation floor."""

    config: SequentialConfig
    name: ClassVar[str] = "sequential"
    version: ClassVar[int] = 1
    needs: ClassVar[frozenset[Capture]] = frozenset()

    def reduce(self, tokens: VisualTokens, text: TextQuery | None = None) -> ReducedTokens:
        """Return the first patches of each frame, or of each clip."""
        check_finite(tokens)
        frames, patches, _ = tokens.features.shape
        device = tokens.features.device
        if self.config.scope == "frame":
            keep = sequential_indices(patches, self.config.k).to(device)
            return keep_patches(tokens, (_inverse(keep, patches) >= 0).expand(frames, -1))
        _, number_F = frames_in_clip(tokens.clip_ptr)
        return keep_patches(tokens, number_F[:, None] * patches + torch.arange(patches, device=device) < self.config.k)


@dataclass(frozen=True, kw_only=True)
class SpatialConfig:
    """Parameters of `spatial`."""

    k: int = 32
    """Patches kept per frame; ignored where rows and cols are given."""
    rows: int | None = None
    """Rows of the grid, with `cols`."""
    cols: int | None = None
    """Columns of the grid, with `rows`."""
    anchor: Literal["start", "center"] = "start"
    """Which patch of each cell is kept: its first, or its middle one."""

    def __post_init__(self) -> None:
        if (self.rows is None) != (self.cols is None):
            raise BudgetError(f"expected rows and cols together, got rows={self.rows}, cols={self.cols}")
        for name, value in (("k", self.k), ("rows", self.rows), ("cols", self.cols)):
            if value is not None and value < 1:
                raise BudgetError(f"expected {name} of at least 1, got {value}")


@dataclass(frozen=True)
class Spatial(Fingerprinted):
    """Keeps patches on an even grid over each frame."""

    config: SpatialConfig
    name: ClassVar[str] = "spatial"
    version: ClassVar[int] = 1
    needs: ClassVar[frozenset[Capture]] = frozenset()

    def reduce(self, tokens: VisualTokens, text: TextQuery | None = None) -> ReducedTokens:
        """Return the crossings of the grid in each frame. Raises BudgetError for more rows or columns than patches."""
        check_finite(tokens)
        high, wide = tokens.grid
        shape = None if self.config.rows is None else (self.config.rows, self.config.cols or 0)
        if shape is not None and (shape[0] > high or shape[1] > wide):
            raise BudgetError(f"expected at most {high} x {wide} crossings, got {shape[0]} x {shape[1]}")
        keep = spatial_indices(tokens.grid, keep=self.config.k, shape=shape, anchor=self.config.anchor)
        mask_N = _inverse(keep.to(tokens.features.device), high * wide) >= 0
        return keep_patches(tokens, mask_N.expand(len(tokens.features), -1))


def _inverse(keep: Tensor, patches: int) -> Tensor:
    """Return for each patch its place in `keep`, or -1."""
    places = torch.full((patches,), -1, device=keep.device)
    places[keep] = torch.arange(len(keep), device=keep.device)
    return places
