"""HiRED: share a budget over partitions, and keep in each the patches that CLS attends to most.

Built so far: the video form, where a partition is a frame. Sub-images of one picture are not a part of this file yet.

Shapes: F frames, N patches.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from reducers.base import (
    KEPT,
    BudgetError,
    Capture,
    Fingerprinted,
    ReducedTokens,
    Slots,
    TextQuery,
    VisualTokens,
    assemble,
    check_finite,
    frames_in_clip,
    rank_of,
    ranked,
    share_to_count,
)


@dataclass(frozen=True, kw_only=True)
class HiRedConfig:
    """Parameters of `hired`."""

    rate: float = 0.2
    """Share of all patches of a clip that is kept."""
    spatial_tokens: int = 0
    """Also keep every (N / spatial_tokens)-th patch of each frame."""

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1 or self.spatial_tokens < 0:
            raise BudgetError(f"expected rate in (0, 1] and spatial_tokens >= 0, got {self.rate}, {self.spatial_tokens}")


@dataclass(frozen=True)
class HiRed(Fingerprinted):
    """Keeps the same number of best-attended patches in each frame, as many over a clip as the rate allows.

    Source: hasanar1f/HiRED, AAAI 2025, at 502d6dd; REDUCERS.md sections 5.7 and 6.
    Departs: for video, budgets are shared over frames evenly and to the last token.
    """

    config: HiRedConfig
    name: ClassVar[str] = "hired"
    version: ClassVar[int] = 1
    needs_text: ClassVar[bool] = False
    modifies_tower: ClassVar[bool] = False
    late: ClassVar[Capture] = Capture(kind="cls_attn", block="selected", heads="sum")
    needs: ClassVar[frozenset[Capture]] = frozenset({late})

    def reduce(self, tokens: VisualTokens, text: TextQuery | None = None) -> ReducedTokens:
        """Return the kept patches unchanged, ascending in each frame."""
        check_finite(tokens)
        score_FN = tokens.capture(self.late)
        mask_FN = best_attended(score_FN, _even_budgets(tokens, self.config.rate), self.config.spatial_tokens)
        every = torch.arange(mask_FN.shape[1], device=mask_FN.device).expand_as(mask_FN)
        ones = torch.ones(mask_FN.shape, device=mask_FN.device)
        kept = Slots(features=tokens.features, valid=mask_FN, anchor=every, kind=KEPT, size=ones)
        return assemble(tokens, [kept], torch.where(mask_FN, every, -1))


def best_attended(score_FN: Tensor, budget_F: Tensor, spatial_tokens: int = 0) -> Tensor:
    """Return the mask (F, N) of the `budget` best scores of each frame, and of a sparse grid where asked for."""
    mask_FN = rank_of(ranked(score_FN)) < budget_F[:, None]
    if spatial_tokens:
        patches = score_FN.shape[1]
        index_N = torch.arange(patches, device=score_FN.device)
        mask_FN = mask_FN | ((index_N % max(1, patches // spatial_tokens) == 0) & (index_N < patches - 1))
    return mask_FN


def _even_budgets(tokens: VisualTokens, rate: float) -> Tensor:
    """Share int(F * N * rate), at least one, of each clip over its frames (F,), the first ones taking what is left."""
    clip_F, number_F = frames_in_clip(tokens.clip_ptr)
    frames_V = (tokens.clip_ptr[1:] - tokens.clip_ptr[:-1]).tolist()
    patches = tokens.features.shape[1]
    totals_V = [max(1, share_to_count(frames * patches, rate)) for frames in frames_V]
    total_F = torch.tensor(totals_V, device=clip_F.device)[clip_F]
    frames_F = torch.tensor(frames_V, device=clip_F.device)[clip_F]
    return total_F // frames_F + (number_F < total_F % frames_F)
