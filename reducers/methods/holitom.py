"""HoliTom, its part before the language model: patches that stand still in a window of frames become one.

Shapes: F frames of one clip, N patches, M = F * N, D width, W windows, R rows of n points, K tokens.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from reducers.base import (
    CONTEXTUAL,
    BudgetError,
    Capture,
    Fingerprinted,
    ReducedTokens,
    ReducerError,
    TextQuery,
    VisualTokens,
)
from reducers.methods.fastvid import density_peaks, distances
from reducers.ops.clip_budget import ATTENTION, Budget, Clip, ClipConfig, ClipTokens, reduce_clips, summed
from reducers.ops.ranking import adjacent_likeness, top_mask


@dataclass(frozen=True, kw_only=True)
class ThresholdConfig(ClipConfig):
    """The parameters of methods that call a patch the same as an earlier one above a cosine of tau."""

    tau: float | None = None
    """0.8 where absolute."""
    tau_mode: Literal["absolute", "quantile"] = "absolute"
    """quantile: tau comes from `framefold calibrate` on this corpus and tower. Published values fit other towers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tau is None and self.tau_mode == "quantile":
            raise ReducerError("expected tau with tau_mode=quantile, from calibrated_tau or framefold calibrate, got none")
        object.__setattr__(self, "tau", 0.8 if self.tau is None else self.tau)
        if not -1 <= (self.tau or 0.0) <= 1:
            raise ReducerError(f"expected tau in [-1, 1], got {self.tau}")


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


def above(values_n: Tensor, share: float) -> float:
    """Return the largest of the values above which `share` of them lie, or the lowest of all.

    Where many are equal, more than `share` may lie above it. Raises ReducerError where there are no values.
    """
    rising = values_n.sort().values
    if len(rising) == 0:
        raise ReducerError("expected clips of two frames or more, got none")
    wanted = round(share * len(rising))
    higher_n = len(rising) - torch.searchsorted(rising, rising, right=True)
    return float(rising[int((higher_n >= wanted).sum()) - 1 if bool((higher_n >= wanted).any()) else 0])


def calibrated_tau(clips: Iterable[Tensor], static_share: float = 0.5) -> float:
    """Return the threshold above which `static_share` of the adjacent same-place pairs of some clips lie.

    Args:
        clips: features (F, N, D) of at least 200 videos of the corpus.
        static_share: in (0, 1).

    Raises:
        ReducerError: the share is not in (0, 1), or no clip has two frames.

    Source: REDUCERS_VIDEO.md section 2, point 3.
    """
    if not 0 < static_share < 1:
        raise ReducerError(f"expected static_share in (0, 1), got {static_share}")
    return above(torch.cat([adjacent_likeness(x_FND).flatten() for x_FND in clips]), static_share)


def windows(same_FN: Tensor, longest: int) -> tuple[list[tuple[int, int]], Tensor]:
    """Cut a clip into the windows in which most patch copies can be saved.

    Args:
        same_FN: (F - 1, N) bool, which patches are the same in the next frame.
        longest: most frames of a window.

    Returns:
        First and last frame of each window, and which of its patches stand still (W, N); none do in a single frame.
    """
    frames = len(same_FN) + 1
    still_N, run = same_FN.new_ones(frames, same_FN.shape[1]), {}
    for length in range(1, min(longest, frames)):
        still_N = still_N[: frames - length] & same_FN[length - 1 :]
        run[length] = (still_N, (length * still_N.sum(1)).tolist())
    best, cut = [0], [0]
    for end in range(frames):
        gains = [best[end], *(best[end - length] + run[length][1][end - length] for length in run if length <= end)]
        best.append(max(gains))
        cut.append(end - gains.index(best[-1]))  # ties: single frames first, then the shorter window
    spans: list[tuple[int, int]] = []
    while (end := spans[0][0] if spans else frames) > 0:
        spans.insert(0, (cut[end], end - 1))
    none_N = torch.zeros_like(still_N[0])
    return spans, torch.stack([run[e - s][0][s] if e > s else none_N for s, e in spans])


def saved(spans: list[tuple[int, int]], still_WN: Tensor) -> int:
    """Return how many patches are copies of another frame of their window."""
    return sum((end - start) * count for (start, end), count in zip(spans, still_WN.sum(1).tolist(), strict=True))


def dense_merge(
    x_RnD: Tensor, valid_Rn: Tensor, centres_R: Tensor, neighbours_R: Tensor, beta: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge the valid points of each row into its densest ones, which keep a weight of beta, or their even share.

    Returns:
        Centres (R, n) bool, their values (R, n, D), and the centre of each valid point (R, n). A row without a centre stays.
    """
    some_R = centres_R > 0
    if bool(some_R.all()):
        return _dense_merge(x_RnD, valid_Rn, centres_R, neighbours_R, beta)
    centre_Rn, value_RnD = torch.zeros_like(valid_Rn), x_RnD.clone()
    nearest_Rn = torch.arange(x_RnD.shape[1], device=x_RnD.device).repeat(len(x_RnD), 1)
    if bool(some_R.any()):
        part = _dense_merge(x_RnD[some_R], valid_Rn[some_R], centres_R[some_R], neighbours_R[some_R], beta)
        centre_Rn[some_R], value_RnD[some_R], nearest_Rn[some_R] = part
    return centre_Rn, value_RnD, nearest_Rn


def _dense_merge(
    x_RnD: Tensor, valid_Rn: Tensor, centres_R: Tensor, neighbours_R: Tensor, beta: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    gap_Rnn = distances(x_RnD)
    centre_Rn = top_mask(density_peaks(gap_Rnn, valid_Rn, neighbours_R), centres_R) & valid_Rn
    index_n = torch.arange(x_RnD.shape[1], device=x_RnD.device)
    nearest_Rn = gap_Rnn.masked_fill(~centre_Rn[:, None], torch.inf).argmin(-1)
    alone_Rn = centre_Rn | ~centre_Rn.any(1, keepdim=True)  # without a centre nobody holds a point
    nearest_Rn = torch.where(alone_Rn, index_n, nearest_Rn)
    joined_Rnn = (nearest_Rn[:, None] == index_n[:, None]) & (valid_Rn & ~centre_Rn)[:, None]
    count_Rn1 = joined_Rnn.sum(-1, keepdim=True)
    mean_RnD = joined_Rnn.float() @ x_RnD / count_Rn1.clamp(min=1)
    own_Rn1 = 1 / (1 + count_Rn1) if beta is None else torch.where(count_Rn1 > 0, beta, 1.0)
    return centre_Rn, own_Rn1 * x_RnD + (1 - own_Rn1) * mean_RnD, nearest_Rn


def holitom(clip: Clip, budget: Budget, config: HoliTomConfig) -> ClipTokens:
    """Return merged still patches of each window, at its first frame, and the best attended others of each frame.

    Source: cokeshao/HoliTom at e9b2972, without merging in the language model; REDUCERS_VIDEO.md section 5.4.
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
