"""PruMerge and PruMerge+: keep the patches that CLS attends to most, and let each take in its nearest neighbours.

Shapes: R rows (frames, or flattened clips), M patches per row, K kept per row, D width.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from reducers.base import (
    ENRICHED,
    BudgetError,
    Capture,
    Fingerprinted,
    ReducedTokens,
    ReducerError,
    TextQuery,
    VisualTokens,
    check_finite,
)
from reducers.ops.budgets import fixed_count
from reducers.ops.frame_rows import aggregate_slot, rows_of, taken
from reducers.ops.layout import Slots, assemble
from reducers.ops.ranking import normalised, outlier_count, pooled_outlier_count, rank_of, ranked


@dataclass(frozen=True, kw_only=True)
class PruMergeConfig:
    """Parameters of `prumerge` and `prumerge+`."""

    adaptive: bool | None = None
    """Keep the outliers of each frame. Default: yes, unless `ratio` is given."""
    ratio: float | None = None
    """Share of patches kept when not adaptive, 1/8 by default; prumerge+ keeps twice as many."""
    knn: int = 32
    """Neighbours that a kept patch takes in."""
    iqr_factor: float = 1.5
    """An outlier lies above Q3 + iqr_factor * (Q3 - Q1)."""
    residual: bool = True
    """Append one token for all patches that were not kept."""
    merge: Literal["add", "mean"] = "add"
    """add: the patch plus the attention-weighted sum of its neighbours. mean: the weighted mean of both."""
    order: Literal["attention", "spatial"] = "attention"
    """Order of the tokens of a frame: by falling attention as published, or by place."""
    scope: Literal["frame", "clip", "batch"] = "frame"
    """clip: one fence and one residual per clip, neighbours from any frame. batch: published accident, needs compat."""
    score_block: Literal["next", "selected"] = "next"
    """The block whose queries and keys are read."""
    heads: Literal["concat", "sum"] = "concat"
    """concat: one softmax over all heads side by side, as published."""
    duplicates: bool = False
    """Published accident of prumerge+ with a ratio: grid patches that are kept already are kept twice. Needs compat."""
    int_truncation: bool = False
    """Published accident: the count goes through int(N * (count / N)) and loses one at times. Needs compat."""
    compat: bool = False
    """Allow published accidents."""

    def __post_init__(self) -> None:
        adaptive = self.ratio is None if self.adaptive is None else self.adaptive
        if adaptive and self.ratio is not None:
            raise BudgetError("expected ratio with adaptive=false only: an adaptive budget has no ratio")
        object.__setattr__(self, "adaptive", adaptive)
        object.__setattr__(self, "ratio", None if adaptive else (1 / 8 if self.ratio is None else self.ratio))
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise BudgetError(f"expected ratio in (0, 1], got {self.ratio}")
        if self.knn < 0 or not self.iqr_factor >= 0:
            raise BudgetError(f"expected knn and iqr_factor of at least 0, got {self.knn} and {self.iqr_factor}")
        if not self.compat and (self.duplicates or self.int_truncation or self.scope == "batch"):
            raise ReducerError("duplicates, int_truncation and scope=batch are published accidents: add compat=true")


@dataclass(frozen=True)
class PruMerge(Fingerprinted):
    """Keeps the patches with outlying CLS attention; each takes in its `knn` nearest patches by key.

    Source: 42Shawn/LLaVA-PruMerge, ICCV 2025, at 097c041; docs/methods/frames.md section 5.3.
    Departs: the outlier fence is per frame, published code pools it over the batch (P6); the count is not truncated (P7);
    `knn` is clamped to what exists (P8).
    """

    config: PruMergeConfig
    name: ClassVar[str] = "prumerge"
    version: ClassVar[int] = 1
    plus: ClassVar[bool] = False

    @property
    def needs(self) -> frozenset[Capture]:
        """CLS attention and keys of the block that consumes the selected layer."""
        return frozenset({self._attention, self._keys})

    @property
    def _attention(self) -> Capture:
        return Capture(kind="cls_attn", block=self.config.score_block, heads=self.config.heads)

    @property
    def _keys(self) -> Capture:
        return Capture(kind="keys", block=self.config.score_block, heads="concat")

    def reduce(self, tokens: VisualTokens, text: TextQuery | None = None) -> ReducedTokens:
        """Return the enriched patches of each frame in the order asked for, then its residual token."""
        check_finite(tokens)
        scope = "clip" if self.config.scope == "clip" else "frame"
        x_RMD, k_RMD, a_RM, valid_RM = self._rows(tokens, scope)
        chosen_RK, kept_RK = self._choose(a_RM, valid_RM)
        slot_RM, unkept_RM = slots_of(chosen_RK, kept_RK, valid_RM)
        present_RM = valid_RM
        if self.config.duplicates:
            unkept_RM = unkept_RM & ~lost_to_twins(kept_RK, unkept_RM, valid_RM)
            present_RM = unkept_RM
        weight_RKM = neighbour_weights(k_RMD, a_RM, present_RM, chosen_RK, kept_RK, self.config)
        ones_RK = torch.ones(kept_RK.shape, device=kept_RK.device)
        kept = Slots(features=weight_RKM @ x_RMD, valid=kept_RK, anchor=chosen_RK, kind=ENRICHED, size=ones_RK)
        if not self.config.residual:
            return assemble(tokens, [kept], slot_RM, scope=scope)
        slot_RM = torch.where(unkept_RM, kept_RK.shape[1], slot_RM)
        residual = aggregate_slot(tokens, x_RMD, a_RM, unkept_RM, scope)
        return assemble(tokens, [kept, residual], slot_RM, scope=scope)

    def _rows(self, tokens: VisualTokens, scope: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return features, keys of length 1 and attention of each row in float32, and which patches are real."""
        values = [tokens.features, tokens.capture(self._keys), tokens.capture(self._attention)[..., None]]
        rows, valid_RM = rows_of(tokens, values, scope)
        x_RMD, k_RMD, a_RM = rows[0].float(), normalised(rows[1]), rows[2][..., 0].float()
        return x_RMD.masked_fill(~valid_RM[..., None], 0), k_RMD, a_RM.masked_fill(~valid_RM, 0), valid_RM

    def _choose(self, a_RM: Tensor, valid_RM: Tensor) -> tuple[Tensor, Tensor]:
        """Return the kept patches of each row in output order (R, K), padded, and which of them are real."""
        c = self.config
        rank_RM = rank_of(ranked(a_RM.masked_fill(~valid_RM, -torch.inf)))
        count_R = adaptive_count(a_RM, valid_RM, c) if c.adaptive else fixed_count(valid_RM, c.ratio or 0.0)
        if self.plus:
            order_RM, count_R = with_grid(rank_RM, valid_RM, count_R, c)
        else:
            order_RM = rank_RM.argsort(dim=1)
        count_R = count_R if c.residual else count_R.clamp(min=1)
        chosen_RK = order_RM[:, : int(count_R.max())]
        kept_RK = torch.arange(chosen_RK.shape[1], device=a_RM.device) < count_R[:, None]
        if c.order == "spatial":
            chosen_RK, place = chosen_RK.masked_fill(~kept_RK, a_RM.shape[1]).sort(dim=1)
            kept_RK = kept_RK.gather(1, place)
        return chosen_RK.masked_fill(~kept_RK, 0), kept_RK


@dataclass(frozen=True)
class PruMergePlus(PruMerge):
    """PruMerge with patches of an even grid added to the kept ones, more of them the more outliers there are.

    Source: as PruMerge; docs/methods/frames.md section 5.4.
    Departs: the grid ends before N - 1 for any N (Q2); a frame without outliers takes one for the stride (Q4); with a ratio,
    grid patches that are kept already are replaced by the next best (Q5), so that the count is exact.
    """

    name: ClassVar[str] = "prumerge+"
    plus: ClassVar[bool] = True


def adaptive_count(a_RM: Tensor, valid_RM: Tensor, config: PruMergeConfig) -> Tensor:
    """Return how many patches of each row (R,) lie above the fence of the row, or of the whole batch."""
    if config.scope == "batch":
        return pooled_outlier_count(a_RM, config.iqr_factor)
    count_R = outlier_count(a_RM, config.iqr_factor, valid_RM)
    if not config.int_truncation:
        return count_R
    patches_R = valid_RM.sum(1).double()
    return (patches_R * (count_R.double() / patches_R)).long()


def with_grid(rank_RM: Tensor, valid_RM: Tensor, count_R: Tensor, config: PruMergeConfig) -> tuple[Tensor, Tensor]:
    """Return patches in the order in which prumerge+ keeps them (R, M), and how many of them it keeps (R,).

    First the best `count` by attention, then grid patches by index, then, where a ratio asks for exactly twice the count,
    down the ranking. With `duplicates` the grid patches that are kept already come once more (R, 2M).
    """
    patches = rank_RM.shape[1]
    index_M = torch.arange(patches, device=rank_RM.device)
    top_RM, grid_RM = rank_RM < count_R[:, None], grid_mask(valid_RM, count_R, config)
    if config.duplicates:
        grid_key = torch.where(grid_RM, patches + index_M, 3 * patches)
        key = torch.cat([torch.where(top_RM, rank_RM, 3 * patches), grid_key], dim=1)
        return key.argsort(dim=1, stable=True) % patches, top_RM.sum(1) + grid_RM.sum(1)
    key = torch.where(top_RM, rank_RM, torch.where(grid_RM, patches + index_M, 2 * patches + rank_RM))
    kept_R = (top_RM | grid_RM).sum(1) if config.adaptive else torch.minimum(2 * count_R, valid_RM.sum(1))
    return key.argsort(dim=1), kept_R


def grid_mask(valid_RM: Tensor, count_R: Tensor, config: PruMergeConfig) -> Tensor:
    """Return which patches lie on the grid of each row (R, M): every `stride`-th below M - 1."""
    index_M = torch.arange(valid_RM.shape[1], device=valid_RM.device)
    patches_R = valid_RM.sum(1)
    if config.adaptive:
        start_R = torch.zeros_like(count_R)
        stride_R = (patches_R // count_R.clamp(min=1) // 3).clamp(min=1)
    else:
        stride_R = torch.full_like(count_R, int(1 / (config.ratio or 1.0)))
        start_R = stride_R // 2
    past_RM = index_M - start_R[:, None]
    return (past_RM >= 0) & (past_RM % stride_R[:, None] == 0) & (index_M < patches_R[:, None] - 1)


def neighbour_weights(
    k_RMD: Tensor, a_RM: Tensor, candidate_RM: Tensor, chosen_RK: Tensor, kept_RK: Tensor, config: PruMergeConfig
) -> Tensor:
    """Return what each kept patch is made of: weights (R, K, M) of the patches of its row.

    `k_RMD` are keys of length 1. Any other candidate may be a neighbour, kept or not. With `duplicates` the kept ones
    stand in the list of candidates as often as they are kept, so that a patch can meet its twin.
    """
    patches = k_RMD.shape[1]
    index_RC = torch.arange(patches, device=k_RMD.device).expand_as(candidate_RM)
    own_RK = chosen_RK
    if config.duplicates:
        index_RC, candidate_RM = torch.cat([chosen_RK, index_RC], 1), torch.cat([kept_RK, candidate_RM], 1)
        own_RK = torch.arange(chosen_RK.shape[1], device=k_RMD.device).expand_as(chosen_RK)
    likeness_RKC = taken(k_RMD, chosen_RK) @ taken(k_RMD, index_RC).transpose(1, 2)
    likeness_RKC = likeness_RKC.masked_fill(~candidate_RM[:, None], -torch.inf).scatter(2, own_RK[..., None], -torch.inf)
    neighbours = config.knn - (config.merge == "mean")
    nearest_RKn = ranked(likeness_RKC)[..., : max(0, min(neighbours, patches - 1))]
    real_RKn = likeness_RKC.gather(2, nearest_RKn).isfinite()
    patch_RKn = index_RC[:, None].expand(-1, chosen_RK.shape[1], -1).gather(2, nearest_RKn)
    a_RKn = a_RM[:, None].expand(-1, chosen_RK.shape[1], -1).gather(2, patch_RKn) * real_RKn
    weight_RKM = torch.zeros(*chosen_RK.shape, patches, device=k_RMD.device).scatter_add_(2, patch_RKn, a_RKn)
    own_weight_RK = a_RM.gather(1, chosen_RK) if config.merge == "mean" else torch.ones_like(kept_RK, dtype=torch.float32)
    weight_RKM.scatter_add_(2, chosen_RK[..., None], own_weight_RK[..., None])
    return weight_RKM / weight_RKM.sum(-1, keepdim=True).clamp(min=1e-30) if config.merge == "mean" else weight_RKM


def slots_of(chosen_RK: Tensor, kept_RK: Tensor, valid_RM: Tensor) -> tuple[Tensor, Tensor]:
    """Return the slot of each kept patch (R, M), -1 for the others, and which real patches were not kept."""
    patches = valid_RM.shape[1]
    slot_RK = torch.arange(chosen_RK.shape[1], device=chosen_RK.device).expand_as(chosen_RK)
    padded = torch.full((len(valid_RM), patches + 1), -1, device=valid_RM.device)
    slot_RM = padded.scatter_(1, chosen_RK.masked_fill(~kept_RK, patches), slot_RK)[:, :-1]
    return slot_RM, valid_RM & (slot_RM < 0)


def lost_to_twins(kept_RK: Tensor, unkept_RM: Tensor, valid_RM: Tensor) -> Tensor:
    """Return the patches (R, M) that vanish by accident Q5: the first unkept ones, as many as are kept twice."""
    twins_R = kept_RK.sum(1) + unkept_RM.sum(1) - valid_RM.sum(1)
    return unkept_RM & (unkept_RM.cumsum(1) <= twins_R[:, None])
