"""UniComp: average frames that are alike, then keep in each the patches that no kept one stands for.

Shapes: F frames of one clip, G groups of frames, N patches, M = F * N, D width, d width of the metric, K tokens.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from reducers.base import (
    ENRICHED,
    KEPT,
    BudgetError,
    Capture,
    Fingerprinted,
    ReducedTokens,
    ReducerError,
    TextQuery,
    VisualTokens,
)
from reducers.ops.budgets import allocate
from reducers.ops.clip_budget import ATTENTION, Budget, Clip, ClipConfig, ClipTokens, reduce_clips, summed
from reducers.ops.ranking import normalised, rank_of, top_mask


@dataclass(frozen=True, kw_only=True)
class UniCompConfig(ClipConfig):
    """Parameters of `unicomp`. Lower `spatial_uniqueness` where `fit_budget` has to add much."""

    frame_uniqueness: float = 0.005
    """U_f: a frame this close (1 - cosine of the mean patches) to the first of a group joins it."""
    spatial_uniqueness: float = 0.2
    """U_c: a patch closer than this to a kept one is not kept."""
    metric: Literal["features", "keys"] = "features"
    """What patches of a frame are compared by."""
    channel_means: bool = False
    """Published accident A9: the frame vector is the mean over channels. Needs compat."""
    compat: bool = False
    """Published arithmetic of budgets: floors, whose remainders are lost."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.frame_uniqueness >= 0 or not self.spatial_uniqueness >= 0:
            got = f"{self.frame_uniqueness} and {self.spatial_uniqueness}"
            raise BudgetError(f"expected frame_uniqueness and spatial_uniqueness of at least 0, got {got}")
        if self.channel_means and not self.compat:
            raise ReducerError("channel_means is a published accident: add compat=true")


def frame_groups(x_FND: Tensor, frame_uniqueness: float, longest: int) -> list[int]:
    """Return the first frame of each group of consecutive frames; a group has at most `longest` frames."""
    u_FD = normalised(x_FND.mean(1))
    apart = (1 - u_FD @ u_FD.T).tolist()
    first = [0]
    for frame in range(1, len(apart)):
        if apart[frame][first[-1]] > frame_uniqueness or frame - first[-1] >= longest:
            first.append(frame)
    return first


def group_budgets(vector_GD: Tensor, total: int, patches: int, *, compat: bool = False) -> Tensor:
    """Share `total` over groups (G,), int64: the more, the less a group's vector is like all; at most twice even.

    Source: TimeMarker-LLM/UniComp at 1904269, token_allocation; docs/methods/video.md section 5.6.
    Departs: exact shares by largest remainder; published floors, and spreads what the cap leaves over by floors again.
    """
    groups = len(vector_GD)
    mean_G = (normalised(vector_GD) @ normalised(vector_GD).T).mean(1)
    weight_G = ((mean_G.mean() - mean_G) * groups**0.5).softmax(0)
    cap = min(patches, max(1, 2 * (total // groups)))
    if not compat:
        return allocate(total, weight_G, cap)
    if groups <= total // cap:
        return torch.full((groups,), cap, device=weight_G.device)
    budget_G = (weight_G * total).floor().long().clamp(max=cap)
    open_G = budget_G < cap
    return budget_G + open_G * torch.div(total - budget_G.sum(), open_G.sum().clamp(min=1), rounding_mode="floor")


def unique_picks(close_GNN: Tensor, rank_GN: Tensor) -> Tensor:
    """Return which patches are picked (G, N) bool when, by rank, each is picked unless close to one picked before."""
    blocks_GNN = close_GNN & (rank_GN[:, None] < rank_GN[:, :, None])
    picked_GN, settled = torch.ones_like(rank_GN, dtype=torch.bool), False
    while not settled:  # after n rounds the n first by rank are right, and most pictures settle in a few
        again_GN = ~(blocks_GNN & picked_GN[:, None]).any(-1)
        settled = bool((again_GN == picked_GN).all())
        picked_GN = again_GN
    return picked_GN


def pass_surplus(budget_G: Tensor, picks_G: Tensor, *, compat: bool = False) -> Tensor:
    """Return budgets (G,) within picks: what some groups cannot use goes evenly, one by one, to those that can."""
    surplus, room_G = (budget_G - picks_G).clamp(min=0).sum(), (picks_G - budget_G).clamp(min=0)
    if compat:
        share = torch.div(surplus, (picks_G >= budget_G).sum().clamp(min=1), rounding_mode="floor")
        return torch.minimum(budget_G + share * (picks_G >= budget_G), picks_G)
    usable_LG = torch.arange(int(room_G.max()), device=room_G.device)[:, None] < room_G
    taken_LG = usable_LG & (usable_LG.flatten().cumsum(0).view_as(usable_LG) <= surplus)
    return torch.minimum(budget_G, picks_G) + taken_LG.sum(0)


def unicomp(clip: Clip, budget: Budget, config: UniCompConfig) -> ClipTokens:
    """Return the picked patches of each group of frames, at its first frame, blended with their neighbourhood.

    Source: TimeMarker-LLM/UniComp at 1904269; docs/methods/video.md section 5.6.
    Departs: budgets and surplus are shared to the last token; the vector of a group is the CLS row of its first frame
    (A9).
    """
    frames, patches, _ = clip.x.shape
    first = frame_groups(clip.x, config.frame_uniqueness, int(1 / budget.ratio) + 1)
    bounds_G = torch.tensor([*first, frames], device=clip.x.device)
    group_F = torch.repeat_interleave(torch.arange(len(first), device=clip.x.device), bounds_G.diff())
    x_GND, metric_GNd = (_group_means(rows_FND, group_F) for rows_FND in (clip.x, clip.metric))
    close_GNN = torch.eye(patches, dtype=torch.bool, device=clip.x.device).expand(len(first), -1, -1)
    rank_GN = torch.zeros_like(x_GND[..., 0])
    picked_GN = rank_GN == 0
    if len(first) * patches > budget.patches:
        like_GNN = normalised(metric_GNd) @ normalised(metric_GNd).transpose(1, 2)
        close_GNN = close_GNN | (1 - like_GNN < config.spatial_uniqueness)
        rank_GN = rank_of(like_GNN.mean(-1).argsort(dim=1, stable=True)).float()
        picked_GN = unique_picks(close_GNN, rank_GN)
        vector_GD = x_GND.mean(-1) if config.channel_means else clip.g[bounds_G[:-1]]
        budget_G = group_budgets(vector_GD, budget.patches, patches, compat=config.compat)
        budget_G = pass_surplus(budget_G, picked_GN.sum(1), compat=config.compat)
        picked_GN &= top_mask(-rank_GN.masked_fill(~picked_GN, patches), budget_G)
    return _tokens(x_GND, close_GNN & picked_GN[:, :, None], rank_GN, bounds_G, group_F)


def _group_means(rows_FND: Tensor, group_F: Tensor) -> Tensor:
    sum_GND = summed(rows_FND, group_F, int(group_F[-1]) + 1)
    return sum_GND / group_F.bincount()[:, None, None]


def _tokens(x_GND: Tensor, near_GNN: Tensor, rank_GN: Tensor, first_G: Tensor, group_F: Tensor) -> ClipTokens:
    """Blend each picked patch with its neighbourhood; a patch is held by the first pick, by rank, that it is near to.

    Args:
        near_GNN: row i says which patches are near pick i; empty where i is not picked.
    """
    patches = x_GND.shape[1]
    count_GN = near_GNN.sum(-1)
    group_K, patch_K = (count_GN > 0).nonzero(as_tuple=True)
    mean_KD = (near_GNN.float() @ x_GND)[group_K, patch_K] / count_GN[group_K, patch_K][:, None]
    place_GN = ((count_GN > 0).flatten().cumsum(0) - 1).view_as(count_GN)
    pick_GN = rank_GN[..., None].masked_fill(~near_GNN, torch.inf).argmin(1)
    held_GN = place_GN.gather(1, pick_GN).masked_fill(~near_GNN.any(1), -1)
    found = ClipTokens(
        features=(x_GND[group_K, patch_K] + mean_KD) / 2,
        anchor=first_G[group_K] * patches + patch_K,
        kind=torch.full_like(patch_K, KEPT, dtype=torch.uint8),
        holder=held_GN[group_F].flatten()[:, None],
    )
    changed_K = (found.size > 1) | (count_GN[group_K, patch_K] > 1)
    return replace(found, kind=torch.where(changed_K, ENRICHED, KEPT).to(torch.uint8))


@dataclass(frozen=True)
class UniComp(Fingerprinted):
    """Averages runs of like frames, keeps the patches of each that are unlike all kept ones, the most unique first.

    Source and departures: as `unicomp`.
    """

    config: UniCompConfig
    name: ClassVar[str] = "unicomp"
    version: ClassVar[int] = 1
    keys: ClassVar[Capture] = Capture(kind="keys", block="selected", heads="mean")

    @property
    def needs(self) -> frozenset[Capture]:
        """Attention, and the keys of the block that produced the selected layer if they are the metric."""
        return frozenset({ATTENTION, self.keys} if self.config.metric == "keys" else {ATTENTION})

    def reduce(self, tokens: VisualTokens, text: TextQuery | None = None) -> ReducedTokens:
        """Return the picked patches of each clip, ascending."""
        keys = self.keys if self.config.metric == "keys" else None
        return reduce_clips(tokens, self.config, partial(unicomp, config=self.config), keys)
