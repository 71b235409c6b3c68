"""HoliTom, its part before the language model: patches that stand still in a window of frames become one.

Shapes: F frames of one clip, N patches, M = F * N, D width, W windows, R rows of n points, K tokens.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from reducers.base import (
    CONTEXTUAL,
    BudgetError,
    Capture,
    Fingerprinted,
    ReducedTokens,
    TextQuery,
    VisualTokens,
)
from reducers.ops.clip_budget import ATTENTION, Budget, Clip, ClipTokens, reduce_clips, summed
from reducers.ops.density import dense_merge
from reducers.ops.ranking import adjacent_likeness, top_mask
from reducers.ops.segments import saved, windows
from reducers.ops.similarity import ThresholdConfig


@dataclass(frozen=True, kw_only=True)
class HoliTomConfig(ThresholdConfig):
    """Parameters of `holitom`. Published tau: 0.8, and 0.65 at a ratio of 0.1."""

    beta: float = 0.6
    """Weight of a centre's own value."""
    neighbours: int = 7
    """K, points that the density of a patch is taken from."""
    context_share: float = 0.0
    """D, share of a frame's changing tokens that merge others."""
    max_window: int | None = None
    """Most frames of a window."""
    compat: bool = False
    """Published accident A5: density is taken from no more points than there are centres."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta <= 1 or not 0 <= self.context_share <= 1:
            raise BudgetError(f"expected beta and context_share in [0, 1], got {self.beta} and {self.context_share}")
        if self.neighbours < 1 or (self.max_window is not None and self.max_window < 1):
            raise BudgetError(f"expected neighbours and max_window >= 1, got {self.neighbours} and {self.max_window}")


def holitom(clip: Clip, budget: Budget, config: HoliTomConfig) -> ClipTokens:
    """Return merged still patches of each window, at its first frame, and the best attended others of each frame.

    Source: cokeshao/HoliTom at e9b2972, without merging in the language model; docs/methods/video.md section 5.4.
    Departs: context_share works (A6); density is taken from K points however few centres there are (A5).
    """
    frames, patches, _ = clip.x.shape
    spans, still_WN = windows(adjacent_likeness(clip.x) > (config.tau or 0.0), config.max_window or frames)
    ratio = min(1.0, budget.ratio / (1 - saved(spans, still_WN) / clip.a.numel()))
    first_W, last_W = torch.tensor(spans, device=clip.x.device).T
    window_F = torch.repeat_interleave(torch.arange(len(spans), device=first_W.device), last_W - first_W + 1)
    mean_WND = summed(clip.x, window_F, len(spans))
    mean_WND /= (last_W - first_W + 1)[:, None, None]
    centres_W = (still_WN.sum(1).double() * ratio).round().long()
    merged = dense_merge(mean_WND, still_WN, centres_W, _neighbours(still_WN, centres_W, config), config.beta)
    token_FN, value_FND, held_FN = _changing(clip, ~still_WN[window_F], ratio, config)
    token_FN[first_W] |= merged[0]
    value_FND[first_W] = torch.where(still_WN[..., None], merged[1], value_FND[first_W])
    frame_F = torch.where(still_WN[window_F], first_W[window_F][:, None], torch.arange(frames, device=first_W.device)[:, None])
    held_FN = torch.where(still_WN[window_F], merged[2][window_F], held_FN) + patches * frame_F
    return _tokens(token_FN.flatten(), value_FND.flatten(0, 1), held_FN.flatten())


def _neighbours(valid_Rn: Tensor, centres_R: Tensor, config: HoliTomConfig) -> Tensor:
    if config.compat:
        return centres_R.clamp(min=1, max=config.neighbours)
    return valid_Rn.sum(1).clamp(min=1, max=max(2, config.neighbours))


def _changing(clip: Clip, changing_FN: Tensor, ratio: float, config: HoliTomConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Choose tokens among the changing patches: mask (F, N), values (F, N, D), the patch that holds each (F, N)."""
    wanted_F = (changing_FN.sum(1).double() * ratio).ceil()
    plain_F = (wanted_F * (1 - config.context_share)).round()
    token_FN = top_mask(clip.a.masked_fill(~changing_FN, -torch.inf), plain_F)
    own_FN = torch.arange(clip.x.shape[1], device=clip.x.device).expand_as(token_FN)
    if config.context_share == 0:
        return token_FN, clip.x.clone(), own_FN
    rest_FN, centres_F = changing_FN & ~token_FN, (wanted_F - plain_F).long()
    near_F = _neighbours(rest_FN, centres_F, config)
    centre_FN, value_FND, nearest_FN = dense_merge(clip.x, rest_FN, centres_F, near_F, config.beta)
    value_FND = torch.where(rest_FN[..., None], value_FND, clip.x)
    return token_FN | centre_FN, value_FND, torch.where(rest_FN, nearest_FN, own_FN)


def _tokens(token_M: Tensor, value_MD: Tensor, held_M: Tensor) -> ClipTokens:
    """Return the chosen places as tokens; `held_M` names the place that holds each patch, chosen or not."""
    place_M = torch.where(token_M, token_M.cumsum(0) - 1, -1)
    return ClipTokens.by_size(value_MD[token_M], token_M.nonzero()[:, 0], place_M[held_M][:, None], CONTEXTUAL)


@dataclass(frozen=True)
class HoliTom(Fingerprinted):
    """Cuts a clip into the windows that save most, merges what stands still, keeps the best attended of the rest.

    Source and departures: as `holitom`. Departs: tokens are sorted by anchor, published goes window by window.
    """

    config: HoliTomConfig
    name: ClassVar[str] = "holitom"
    version: ClassVar[int] = 1
    needs: ClassVar[frozenset[Capture]] = frozenset({ATTENTION})

    def reduce(self, tokens: VisualTokens, text: TextQuery | None = None) -> ReducedTokens:
        """Return merged and kept patches of each clip, ascending."""
        return reduce_clips(tokens, self.config, partial(holitom, config=self.config))
