"""FlashVID, its part before the language model: select spread, attended patches, link the others into trees.

Shapes: F frames of one clip, N patches, M = F * N, D width, S segments, u roots of a frame (padded).
"""

from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import ClassVar, Literal

import torch
from torch import Tensor

from reducers.base import CONTEXTUAL, BudgetError, Capture, Fingerprinted, ReducedTokens, TextQuery, VisualTokens
from reducers.ops.clip_budget import ATTENTION, Budget, Clip, ClipTokens, reduce_clips, summed
from reducers.ops.density import dense_merge
from reducers.ops.ranking import adjacent_likeness, normalised, ranked
from reducers.ops.segments import segment_of
from reducers.ops.similarity import ThresholdConfig
from reducers.ops.trees import links, trees

NEIGHBOURS = 7
"""Points that the density of a root is taken from."""


@dataclass(frozen=True, kw_only=True)
class FlashVidConfig(ThresholdConfig):
    """Parameters of `flashvid`; `tau` is the cosine above which a patch continues one of the frame before."""

    alpha: float = 0.7
    """Share of a frame's tokens that are selected; trees and clusters make the others."""
    selection: Literal["v1", "v2"] = "v1"
    """v2 also prefers patches that are like the mean of their segment."""
    segments: int | None = None
    """Least number of segments. Default: a quarter of the frames, rounded up."""
    segment_tau: float = 0.9
    """Frames whose means are less alike than this are always cut apart."""
    compat: bool = False
    """Published accidents A2, A3 and A5 of docs/methods/video.md section 4."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1 or (self.segments is not None and self.segments < 1):
            raise BudgetError(f"expected alpha in [0, 1] and segments >= 1, got {self.alpha} and {self.segments}")


def flashvid(clip: Clip, budget: Budget, config: FlashVidConfig) -> ClipTokens:
    """Return selected patches and merged trees of one clip, sorted by anchor.

    Source: Fanziyang-v/FlashVID at 1d37422; docs/methods/video.md section 5.5.
    Departs: a tree is divided by its size (A2), patches of one-frame segments that are selected are not merged as
    well (A3), density is taken from 7 points however few clusters there are (A5).
    """
    frames, patches, _ = clip.x.shape
    mean_FD = clip.x.mean(1)
    segment_F = segment_of(adjacent_likeness(mean_FD), config.segments, config.segment_tau)
    length_F = segment_F.bincount()[segment_F]
    tokens = min(patches, ceil(patches * budget.ratio))
    score_FN = clip.a
    if config.selection == "v2":
        mean_SD = summed(mean_FD / length_F[:, None], segment_F, frames)
        score_FN = score_FN * (clip.x @ mean_SD[segment_F][..., None])[..., 0].clamp(min=0)
    picked_FN = spread_selection(clip.x, score_FN, ceil(tokens * config.alpha))
    free_FN = ~picked_FN
    if config.compat:
        free_FN = free_FN | (length_F == 1)[:, None]
    parent_M = links(clip.x, free_FN, segment_F, tokens, config.tau or 0.0)
    root_M, value_MD = trees(clip.x.flatten(0, 1), parent_M, direct=config.compat)
    rooted_FN = free_FN & (root_M == torch.arange(len(root_M), device=root_M.device)).view_as(free_FN)
    merged = int(tokens - picked_FN[0].sum())
    return _tokens(clip, picked_FN, rooted_FN, root_M, value_MD, cluster_counts(rooted_FN, segment_F, merged), config)


def spread_selection(x_FND: Tensor, score_FN: Tensor, count: int) -> Tensor:
    """Choose in each frame patches far (1 - cosine, times the score of the new one) from all chosen (F, N) bool."""
    frames, patches = score_FN.shape
    u_FND = normalised(x_FND)
    apart_FNN = (1 - u_FND @ u_FND.transpose(1, 2)) * score_FN[:, None]
    if count < 1:
        return torch.zeros_like(score_FN, dtype=torch.bool)
    picked_FN = torch.zeros_like(score_FN, dtype=torch.bool)
    row_F = torch.arange(frames, device=score_FN.device)
    nearest_FN = apart_FNN.topk(min(2, patches), dim=1, largest=False).values[:, -1]
    for step in range(min(count, patches)):  # each choice depends on all before
        new_F = nearest_FN.masked_fill(picked_FN, -torch.inf).argmax(1)
        picked_FN[row_F, new_F] = True
        nearest_FN = apart_FNN[row_F, new_F] if step == 0 else nearest_FN.minimum(apart_FNN[row_F, new_F])
    return picked_FN


def cluster_counts(rooted_FN: Tensor, segment_F: Tensor, merged: int) -> Tensor:
    """Share `merged` tokens per frame over the frames of each segment (F,), by their roots."""
    roots_F = rooted_FN.sum(1)
    all_F = summed(roots_F, segment_F, len(roots_F))[segment_F]
    wanted_F = merged * segment_F.bincount()[segment_F]
    share_F = torch.div(roots_F * wanted_F + all_F - 1, all_F.clamp(min=1), rounding_mode="floor")
    return torch.where(wanted_F < all_F, share_F, roots_F)


def _tokens(
    clip: Clip,
    picked_FN: Tensor,
    rooted_FN: Tensor,
    root_M: Tensor,
    value_MD: Tensor,
    clusters_F: Tensor,
    config: FlashVidConfig,
) -> ClipTokens:
    """Cluster the roots of each frame, add what was selected."""
    patches, width = clip.a.shape[1], clip.x.shape[-1]
    roots_F = rooted_FN.sum(1)
    patch_Fu = ranked(rooted_FN.int())[:, : max(1, int(roots_F.max()))]
    id_Fu = patch_Fu + patches * torch.arange(len(clip.a), device=patch_Fu.device)[:, None]
    real_Fu = torch.arange(patch_Fu.shape[1], device=patch_Fu.device) < roots_F[:, None]
    near_F = clusters_F.clamp(max=NEIGHBOURS) if config.compat else roots_F.clamp(max=NEIGHBOURS)
    centre_Fu, mean_FuD, nearest_Fu = dense_merge(value_MD[id_Fu], real_Fu, clusters_F, near_F.clamp(min=1), None)
    picked = picked_FN.flatten().nonzero()[:, 0]
    place_M, centre_M = torch.full((2, len(root_M)), -1, device=picked.device)
    place_M[id_Fu[centre_Fu]] = len(picked) + torch.arange(int(centre_Fu.sum()), device=picked.device)
    centre_M[id_Fu[real_Fu]] = id_Fu.gather(1, nearest_Fu)[real_Fu]
    holder_M = place_M[centre_M[root_M]].masked_fill(centre_M[root_M] < 0, -1)
    holder_M[picked] = torch.arange(len(picked), device=picked.device)
    x_KD = torch.cat([clip.x.flatten(0, 1)[picked], mean_FuD[centre_Fu].view(-1, width)])
    anchor_K = torch.cat([picked, id_Fu[centre_Fu]])
    return ClipTokens.by_size(x_KD, anchor_K, holder_M[:, None], CONTEXTUAL).by_anchor()


@dataclass(frozen=True)
class FlashVid(Fingerprinted):
    """Selects spread and attended patches, merges the others along their trees over time and by density inside a frame.

    Source and departures: as `flashvid`. Departs: a quarter of the frames are segments at least, published counts 8
    at 32.
    """

    config: FlashVidConfig
    name: ClassVar[str] = "flashvid"
    version: ClassVar[int] = 1
    needs: ClassVar[frozenset[Capture]] = frozenset({ATTENTION})

    def reduce(self, tokens: VisualTokens, text: TextQuery | None = None) -> ReducedTokens:
        """Return selected and merged patches of each clip, ascending."""
        return reduce_clips(tokens, self.config, partial(flashvid, config=self.config))
