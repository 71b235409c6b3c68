"""HiRED: share a budget over partitions, and keep in each the patches that CLS attends to most.

The video form, where a partition is a frame.

Shapes: F frames, V clips, N patches.
"""

from dataclasses import dataclass
from math import ceil, sqrt
from typing import ClassVar, Literal

import torch
from torch import Tensor

from reducers.base import (
    BudgetError,
    Capture,
    Fingerprinted,
    ReducedTokens,
    ReducerError,
    TextQuery,
    VisualTokens,
    check_finite,
)
from reducers.ops.budgets import allocate, share_to_count
from reducers.ops.layout import keep_patches
from reducers.ops.ranking import rank_of, ranked


@dataclass(frozen=True, kw_only=True)
class HiRedConfig:
    """Parameters of `hired`."""

    rate: float = 0.2
    """Share of all patches of a clip that is kept."""
    spatial_tokens: int = 0
    """Also keep every (N / spatial_tokens)-th patch of each frame."""
    frame_score: Literal["uniform", "mosaic"] = "uniform"
    """uniform: the same for each frame. mosaic: by the first block's attention over a contact sheet of the clip, which the
    tower sees besides its frames."""

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1 or self.spatial_tokens < 0:
            got = f"{self.rate} and {self.spatial_tokens}"
            raise BudgetError(f"expected rate in (0, 1] and spatial_tokens >= 0, got {got}")


@dataclass(frozen=True)
class HiRed(Fingerprinted):
    """Keeps the best-attended patches of each frame, as many over a clip as the rate allows.

    Source: hasanar1f/HiRED, AAAI 2025, at 502d6dd; docs/methods/frames.md sections 5.7 and 6.
    Departs: for video, budgets are shared over frames to the last token, evenly or by a contact sheet; a clip keeps at
    least one.
    """

    config: HiRedConfig
    name: ClassVar[str] = "hired"
    version: ClassVar[int] = 1
    late: ClassVar[Capture] = Capture(kind="cls_attn", block="selected", heads="sum")
    sheet: ClassVar[Capture] = Capture(kind="sheet", block="first", heads="sum")

    @property
    def needs(self) -> frozenset[Capture]:
        """The attention that patches are ranked by, and the contact sheet's where it shares the budget."""
        return frozenset({self.late, self.sheet} if self.config.frame_score == "mosaic" else {self.late})

    def reduce(self, tokens: VisualTokens, text: TextQuery | None = None) -> ReducedTokens:
        """Return the kept patches unchanged, ascending in each frame.

        Raises BudgetError if a clip has more frames than its contact sheet has patches for.
        """
        if self.config.frame_score == "uniform":
            return self.reduce_by_score(tokens, torch.ones(len(tokens.features)))
        longest = int(tokens.clip_ptr.diff().max())
        if any(tiles > patches for tiles, patches in zip(sheet_layout(longest), tokens.grid, strict=True)):
            shown = "{} x {}".format(*tokens.grid)
            raise BudgetError(f"frame_score=mosaic needs a patch for each of {longest} frames on a contact sheet of {shown}")
        return self.reduce_by_score(tokens, tokens.capture(self.sheet)[:, 0])

    def reduce_by_score(self, tokens: VisualTokens, weight_F: Tensor) -> ReducedTokens:
        """Return the same with budgets in proportion to a score of each frame (F,), see `frame_scores`.

        Raises ReducerError unless there is one score per frame, and on a value that is not finite.
        """
        check_finite(tokens)
        if weight_F.shape != (len(tokens.features),):
            raise ReducerError(f"expected {len(tokens.features)} scores, one per frame, got {tuple(weight_F.shape)}")
        score_FN = tokens.capture(self.late)
        mask_FN = best_attended(score_FN, _budgets(tokens, weight_F, self.config.rate), self.config.spatial_tokens)
        return keep_patches(tokens, mask_FN)


def best_attended(score_FN: Tensor, budget_F: Tensor, spatial_tokens: int = 0) -> Tensor:
    """Return the mask (F, N) of the `budget` best scores of each frame, and of a sparse grid where asked for."""
    mask_FN = rank_of(ranked(score_FN)) < budget_F[:, None]
    if spatial_tokens:
        patches = score_FN.shape[1]
        index_N = torch.arange(patches, device=score_FN.device)
        mask_FN = mask_FN | ((index_N % max(1, patches // spatial_tokens) == 0) & (index_N < patches - 1))
    return mask_FN


def region_sums(score_N: Tensor, layout: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Return the sum of scores in each region (rows * columns,) of a picture cut by `layout`, raster order, float64."""
    index_N = torch.arange(len(score_N), device=score_N.device)
    row_N = torch.div(torch.div(index_N, grid[1], rounding_mode="floor") * layout[0], grid[0], rounding_mode="floor")
    column_N = torch.div(index_N % grid[1] * layout[1], grid[1], rounding_mode="floor")
    sums = torch.zeros(layout[0] * layout[1], dtype=torch.float64, device=score_N.device)
    return sums.index_add_(0, row_N * layout[1] + column_N, score_N.double())


def sheet_layout(frames: int) -> tuple[int, int]:
    """Return rows and columns of a contact sheet: as square as can be, rather wide than high."""
    columns = ceil(sqrt(frames))
    return ceil(frames / columns), columns


def frame_scores(early_N: Tensor, frames: int, grid: tuple[int, int]) -> Tensor:
    """Return a score for each frame of a clip (frames,): CLS attention of block 0 to its tile of the contact sheet.

    Source: docs/methods/frames.md section 6, the counterpart of the full image. Published code has no video form.
    """
    return region_sums(early_N, sheet_layout(frames), grid)[:frames]


def _budgets(tokens: VisualTokens, weight_F: Tensor, rate: float) -> Tensor:
    """Share int(F * N * rate), at least one, of each clip over its frames (F,) in proportion to their weights."""
    patches = tokens.features.shape[1]
    lengths_V = (tokens.clip_ptr[1:] - tokens.clip_ptr[:-1]).tolist()
    clips = weight_F.cpu().split(lengths_V)
    shares = [allocate(max(1, share_to_count(len(clip_F) * patches, rate)), clip_F, patches) for clip_F in clips]
    return torch.cat(shares).to(tokens.features.device)
