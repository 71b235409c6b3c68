"""Second parts of a composition: methods for frames that spend exactly the budget of each row, on its open places only.

What is merged counts by the patches behind it; CLS attention and keys are those of the unreduced frames.

Shapes: R rows, N places each, D width, d width of a head, K tokens of a row (padded).

Source: docs/methods/video.md section 6; each method as in its own file.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from reducers.base import CONTEXTUAL, ENRICHED, BudgetError, Capture, VisualTokens
from reducers.compose.candidates import Places, Spent, kind_of
from reducers.methods.prumerge import PruMergeConfig, neighbour_weights
from reducers.methods.visionzip import VisionZip
from reducers.ops.clip_budget import ATTENTION
from reducers.ops.density import dense_merge
from reducers.ops.ranking import normalised, rank_of, ranked, top_mask


@dataclass(frozen=True, kw_only=True)
class Read:
    """What the tower captured of one clip."""

    captures: Mapping[Capture, Tensor]
    """Each (F, N, ...)."""

    def rows(self, places: Places, need: Capture) -> Tensor:
        """Return a capture (F, N, ...) as the rows of places see it (R, N, ...), float32."""
        return places.over_frames(self.captures[need])


def read_clip(tokens: VisualTokens, needs: frozenset[Capture], start: int, end: int) -> Read:
    """Return the captures of frames start .. end. Raises ReducerError where the tower did not take one."""
    return Read(captures={need: tokens.capture(need)[start:end] for need in needs})


@dataclass(frozen=True, kw_only=True)
class HiRedPartConfig:
    """`hired` as a second part has no parameters."""


@dataclass(frozen=True, kw_only=True)
class PruMergePartConfig:
    """Parameters of `prumerge` and `prumerge+` as a second part. There is no residual token: it would be one too many."""

    knn: int = 32
    """Neighbours that a token takes in."""
    merge: Literal["add", "mean"] | None = None
    """add: as published, the default. mean: the weighted mean; the default, and all there is, behind tree."""
    score_block: Literal["next", "selected"] = "next"
    """The block whose queries and keys are read."""
    heads: Literal["concat", "sum"] = "concat"
    """concat: one softmax over all heads side by side, as published."""

    def __post_init__(self) -> None:
        self.alone()

    def alone(self) -> PruMergeConfig:
        """Return the same parameters for the method by itself. Raises BudgetError."""
        return PruMergeConfig(knn=self.knn, merge=self.merge or "add", score_block=self.score_block, heads=self.heads)


@dataclass(frozen=True, kw_only=True)
class VisionZipPartConfig:
    """Parameters of `visionzip` as a second part."""

    dominant: int = 5
    """Of so many tokens and `contextual`, these are kept for their attention: a proportion, not a count."""
    contextual: int = 1
    """Of `dominant` and so many tokens, these take in all others."""
    merge: Literal["add", "mean"] = "add"
    """add: the target plus the mean of what is assigned to it, as published. mean: their mean."""
    score: Literal["cls", "received"] = "cls"
    """received: rank by the attention that a patch receives from all others, for towers without CLS."""

    def __post_init__(self) -> None:
        if self.dominant < 0 or self.contextual < 0 or self.dominant + self.contextual == 0:
            got = f"{self.dominant} and {self.contextual}"
            raise BudgetError(f"expected dominant and contextual of at least 0, one of them above, got {got}")

    @property
    def attention(self) -> Capture:
        """The scores that patches are ranked by."""
        return Capture(kind="received" if self.score == "received" else "cls_attn", block="selected", heads="sum")


def _attended(places: Places, a_RN: Tensor, budget_R: Tensor) -> Tensor:
    """Return the best attended open places of each row (R, N) bool."""
    return top_mask(a_RN.masked_fill(~places.open, -torch.inf), budget_R)


def _own(token_RN: Tensor) -> Tensor:
    column_N = torch.arange(token_RN.shape[1], device=token_RN.device)
    return torch.where(token_RN, column_N, -1)


def best(places: Places, read: Read, config: HiRedPartConfig) -> Spent:
    """Keep the best attended places as they are."""
    token_RN = _attended(places, read.rows(places, ATTENTION), places.budget)
    return Spent(token=token_RN, value=places.x, kind=kind_of(token_RN, places.size, ENRICHED), held=_own(token_RN))


def visionzip(places: Places, read: Read, config: VisionZipPartConfig) -> Spent:
    """Keep the best attended places, let targets spread over the other open ones take in all that is free.

    int(budget * contextual / (dominant + contextual)) of a row are targets.
    """
    targets_R = places.budget * config.contextual // (config.dominant + config.contextual)
    kept_RN = _attended(places, read.rows(places, config.attention), places.budget - targets_R)
    rest_RN = places.open & ~kept_RN
    place_RN = rest_RN.cumsum(1) - 1
    step_R1 = (rest_RN.sum(1) // targets_R.clamp(min=1)).clamp(min=1)[:, None]
    target_RN = rest_RN & (place_RN % step_R1 == 0) & (place_RN // step_R1 < targets_R[:, None])
    joins_RN = places.free & ~kept_RN & ~target_RN & (targets_R > 0)[:, None]
    k_RNd = normalised(read.rows(places, VisionZip.keys))
    likeness_RNN = (k_RNd @ k_RNd.transpose(1, 2)).masked_fill(~target_RN[:, None], -torch.inf)
    nearest_RN = likeness_RNN.argmax(-1)
    column_N = torch.arange(nearest_RN.shape[1], device=nearest_RN.device)
    weight_RNN = (joins_RN * places.size)[:, None] * (nearest_RN[:, None] == column_N[:, None])
    count_RN1, own_RN1 = weight_RNN.sum(-1, keepdim=True), places.size[..., None]
    sum_RND = weight_RNN @ places.x
    if config.merge == "mean":
        merged_RND = (own_RN1 * places.x + sum_RND) / (own_RN1 + count_RN1).clamp(min=1)
    else:
        merged_RND = places.x + sum_RND / count_RN1.clamp(min=1)
    return Spent(
        token=kept_RN | target_RN,
        value=torch.where(kept_RN[..., None], places.x, merged_RND),
        kind=kind_of(kept_RN, places.size, CONTEXTUAL),
        held=torch.where(joins_RN, nearest_RN, _own(kept_RN | target_RN)),
    )


def prumerge(places: Places, read: Read, config: PruMergePartConfig) -> Spent:
    """Let the best attended places take in their nearest open ones by key."""
    a_RN = read.rows(places, _prumerge_capture(config, "cls_attn"))
    return _enriched(places, read, a_RN, _attended(places, a_RN, places.budget), config)


def prumerge_plus(places: Places, read: Read, config: PruMergePartConfig) -> Spent:
    """As `prumerge`, half of the tokens from an even grid over the open places."""
    a_RN = read.rows(places, _prumerge_capture(config, "cls_attn"))
    return _enriched(places, read, a_RN, _with_grid(places, a_RN), config)


def _with_grid(places: Places, a_RN: Tensor) -> Tensor:
    """Return the better half by attention, then the grid, then down the ranking (R, N) bool, as PruMerge+ with a ratio."""
    top_R1 = ((places.budget + 1) // 2)[:, None]
    rank_RN = rank_of(ranked(a_RN.masked_fill(~places.open, -torch.inf)))
    count_R1 = places.open.sum(1, keepdim=True)
    stride_R1 = (count_R1 // top_R1.clamp(min=1)).clamp(min=1)
    place_RN = places.open.cumsum(1) - 1
    past_RN = place_RN - stride_R1 // 2
    grid_RN = (past_RN % stride_R1 == 0) & (place_RN < count_R1 - 1)
    columns = a_RN.shape[1]
    column_N = torch.arange(columns, device=a_RN.device)
    key_RN = torch.where(rank_RN < top_R1, rank_RN, torch.where(grid_RN, columns + column_N, 2 * columns + rank_RN))
    return rank_of(key_RN.masked_fill(~places.open, 4 * columns).argsort(dim=1, stable=True)) < places.budget[:, None]


def _enriched(places: Places, read: Read, a_RN: Tensor, token_RN: Tensor, config: PruMergePartConfig) -> Spent:
    k_RND = normalised(read.rows(places, _prumerge_capture(config, "keys")))
    chosen_RK = ranked(token_RN.int())[:, : int(places.budget.max())]
    kept_RK = torch.arange(chosen_RK.shape[1], device=a_RN.device) < places.budget[:, None]
    weight_RKN = neighbour_weights(k_RND, a_RN * places.size, places.open, chosen_RK, kept_RK, config.alone())
    index_RKD = chosen_RK[..., None].expand(-1, -1, places.x.shape[-1])
    value_RND = torch.zeros_like(places.x).scatter(1, index_RKD, weight_RKN @ places.x)
    kind_RN = torch.full_like(token_RN, ENRICHED, dtype=torch.uint8)
    return Spent(token=token_RN, value=value_RND, kind=kind_RN, held=_own(token_RN))


def _prumerge_capture(config: PruMergePartConfig, kind: Literal["cls_attn", "keys"]) -> Capture:
    return Capture(kind=kind, block=config.score_block, heads=config.heads if kind == "cls_attn" else "concat")


def dense(places: Places, beta: float, neighbours: int) -> Spent:
    """Merge the open places of each row by density, as HoliTom does with what stands still."""
    near_R = places.open.sum(1).clamp(max=max(2, neighbours))
    token_RN, value_RND, held_RN = dense_merge(places.x, places.open, places.budget, near_R, beta)
    held_RN = held_RN.masked_fill(~places.open | (places.budget == 0)[:, None], -1)
    return Spent(token=token_RN, value=value_RND, kind=kind_of(token_RN, places.size, CONTEXTUAL), held=held_RN)


@dataclass(frozen=True, kw_only=True)
class Second:
    """A method that can be the second part. Any: each has its own config."""

    config: type[Any]
    spend: Callable[[Places, Read, Any], Spent]
    """Chooses the tokens of all rows, by a config."""
    needs: Callable[[Any], frozenset[Capture]]
    """What it reads, by a config."""
    about: str
    """One sentence for the catalogue."""
    version: int = 1
    """Goes into the encode fingerprint."""


def _prumerge_needs(config: PruMergePartConfig) -> frozenset[Capture]:
    return frozenset({_prumerge_capture(config, "cls_attn"), _prumerge_capture(config, "keys")})


SECOND: Mapping[str, Second] = {
    "prumerge": Second(
        config=PruMergePartConfig,
        spend=prumerge,
        needs=_prumerge_needs,
        about="The best attended places take in their nearest ones; no residual token.",
    ),
    "prumerge+": Second(
        config=PruMergePartConfig,
        spend=prumerge_plus,
        needs=_prumerge_needs,
        about="Half of the tokens by attention, half on an even grid over the open places.",
    ),
    "visionzip": Second(
        config=VisionZipPartConfig,
        spend=visionzip,
        needs=lambda config: frozenset({config.attention, VisionZip.keys}),
        about="Five dominant tokens to one contextual one, unless told otherwise.",
    ),
    "hired": Second(
        config=HiRedPartConfig,
        spend=best,
        needs=lambda config: frozenset({ATTENTION}),
        about="The best attended places as they are.",
    ),
}
"""What may stand second."""
