"""`nest` after encoding: stored tokens cut to a budget, to a coverage, or by a question, without the tower.

Shapes: S stored tokens of one clip, CLS rows among them, R ranks, F frames, N patches, M = F * N, D width, P joint space.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from reducers.base import CLS, Order, ReducedTokens, ReducerError, VisualTokens
from reducers.nest.order import NestConfig, Superset
from reducers.nest.reducer import ask, budget_for, fold, tail_of, tokens_of
from reducers.ops.clip_budget import Budget, ClipTokens, joined
from reducers.ops.ranking import normalised

CUT = 1
"""Version of `StoredNest.cut` and of the budgets that a coverage or a gain comes to. Like a reducer's, it is part of a
fingerprint: a change that moves a token raises it."""
ASK = 1
"""Version of `StoredNest.ask`, likewise."""


@dataclass(frozen=True, kw_only=True)
class StoredNest:
    """The stored tokens of one clip that `nest` encoded."""

    superset: Superset
    """Its ranks, without CLS rows."""
    cls: Tensor | None
    """(F, D) CLS rows, None if they were not kept."""
    vectors: Tensor | None
    """(R, P) ranks in the joint image-text space, None if they were not stored."""
    grid: tuple[int, int, int]
    """F, gh, gw."""
    config: NestConfig

    @classmethod
    def of(
        cls, stored: ReducedTokens, grid: tuple[int, int, int], config: NestConfig, vectors_SP: Tensor | None = None
    ) -> "StoredNest":
        """Return one clip by rank. Raises ReducerError if its tokens have no order or one that is not a permutation."""
        order, owner = stored.order, stored.owner
        if order is None or owner is None:
            raise ReducerError("these tokens have no order: encode with nest to cut them later")
        at_R = _by_rank(stored.anchor, order, owner)
        rank_S = torch.cat([order.rank.long(), torch.tensor([-1])])
        frames = stored.kind == CLS
        superset = Superset(
            features=stored.features[at_R].float(),
            id=stored.anchor[at_R].long(),
            parent=order.parent[at_R].long(),
            link=order.link[at_R],
            weight=order.weight[at_R],
            gain=order.gain[at_R],
            holder=rank_S[owner.long()],
            frames=grid[0],
        )
        return cls(
            superset=superset,
            cls=stored.features[frames].float() if bool(frames.any()) else None,
            vectors=None if vectors_SP is None else vectors_SP[at_R].float(),
            grid=grid,
            config=config,
        )

    def least_for(self, coverage: float) -> int:
        """Return the smallest budget, CLS rows included, whose patches explain `coverage` of the clip."""
        return self._with_cls(budget_for(self.superset.gain, coverage))

    def cut_at(self, gain: float, least: int = 32) -> int:
        """Return the budget, CLS rows included, whose patches beyond the first `least` all gain at least so much."""
        tail = tail_of(self.superset.gain, least)
        return self._with_cls(len(self.superset.id) - len(tail) + int((tail >= gain).sum()))

    def cut(self, budget: int) -> ReducedTokens:
        """Return `budget` tokens, CLS rows included, folded; all there are if there are no more."""
        split = self._split(budget)
        folded = fold(self.superset, split.patches, self.config.omega)
        return self._laid_out(tokens_of(folded), split)

    def ask(self, text_P: Tensor, budget: int, prefer: Literal["like", "unlike"] = "like") -> ReducedTokens:
        """Return `budget` tokens chosen for a question. Raises ReducerError without stored vectors of the same space."""
        if self.vectors is None:
            raise ReducerError("these tokens have no vectors in the joint image-text space: encode with --clip-space True")
        if text_P.shape != self.vectors.shape[1:] or not bool(text_P.isfinite().all()):
            raise ReducerError(f"expected a finite text vector ({self.vectors.shape[1]},), got {tuple(text_P.shape)}")
        relevance_R = normalised(self.vectors) @ normalised(text_P[None])[0]
        split = self._split(budget)
        return self._laid_out(ask(self.superset, relevance_R, split.patches, self.config, prefer), split)

    def _with_cls(self, patches: int) -> int:
        """Return the budget whose patches are so many."""
        return patches + (self.grid[0] if self.cls is not None and patches >= self.grid[0] else 0)

    def _split(self, budget: int) -> Budget:
        """Part a budget between CLS rows and patches, as encoding does."""
        ranks, total = len(self.superset.id), len(self.superset.holder)
        return Budget.of(budget, frames=self.grid[0], most=ranks, total=total, has_cls=self.cls is not None)

    def _laid_out(self, found: ClipTokens, split: Budget) -> ReducedTokens:
        frames, height, width = self.grid
        nothing = self.superset.features.new_zeros(1).expand(frames, height * width, self.superset.features.shape[1])
        ends = torch.tensor([0, frames])
        shape = VisualTokens(features=nothing, cls=self.cls, grid=(height, width), clip_ptr=ends, captures={})
        return joined(shape, [found], [split])


def _by_rank(anchor_S: Tensor, order: Order, owner_M: Tensor) -> Tensor:
    """Return the place of each rank among the tokens (R,). Raises ReducerError for an order that cannot be."""
    patch_S = order.rank >= 0
    place_R = order.rank[patch_S].argsort()
    if not torch.equal(order.rank[patch_S].long()[place_R], torch.arange(len(place_R))):
        raise ReducerError("the ranks of these tokens are not a permutation")
    ranks, tokens = len(place_R), len(anchor_S)
    if not _within(order.parent[patch_S], 0, ranks) or not _within(owner_M, -1, tokens):
        raise ReducerError(f"expected parents below {ranks} and owners below {tokens}, at least -1")
    if not _within(anchor_S[patch_S], 0, len(owner_M)):
        raise ReducerError(f"expected anchors of {len(owner_M)} patches")
    return patch_S.nonzero()[:, 0][place_R]


def _within(values: Tensor, least: int, end: int) -> bool:
    """Tell whether all values are at least `least` and below `end`."""
    return values.numel() == 0 or (int(values.min()) >= least and int(values.max()) < end)
