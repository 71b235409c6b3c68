"""`nest`: one ordered superset of a clip whose every prefix is a good reduced clip, and that folds to any budget.

Shapes: F frames, N patches, M = F * N, D width, S ranks of the superset, B budget; see `nest_order` for the ranking.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    TextQuery,
    VisualTokens,
)
from reducers.fit import ATTENTION, Budget, ClipTokens, clips_of, joined, summed
from reducers.nest_order import NestConfig, Superset, build, directions, greedy, kernel, rounded


def fold(given: Superset, budget: int, omega: float) -> Superset:
    """Return the first `budget` ranks; the others are merged, last first, into their parents where they are linked.

    Folding in two steps gives the same bits as folding at once. `omega` is the one that built the superset.

    Source: REDUCERS_VIDEO.md section 7.2.
    """
    ranks, budget = len(given.id), min(max(budget, 1), len(given.id))
    parents, links = given.parent.tolist(), given.link.tolist()
    steps = [(rank, parents[rank]) for rank in range(ranks - 1, budget - 1, -1) if links[rank]]
    y_SD, w_S = _merged(given, steps, omega)
    into = dict(steps)
    goes = [rank if rank < budget else -1 for rank in range(ranks)]
    for rank in range(budget, ranks):  # parents come first, so theirs are known
        goes[rank] = goes[into[rank]] if rank in into else -1
    return Superset(
        features=y_SD[:budget],
        id=given.id[:budget],
        parent=given.parent[:budget],
        link=given.link[:budget],
        weight=w_S[:budget],
        gain=given.gain[:budget],
        holder=torch.tensor([*goes, -1], device=given.holder.device)[given.holder],
        frames=given.frames,
    )


def _merged(given: Superset, steps: Sequence[tuple[int, int]], omega: float) -> tuple[Tensor, Tensor]:
    """Merge one rank after another into its target; return features (S, D) and weights (S,)."""
    y_SD, w_S = given.features.clone(), given.weight.clone()
    for rank, target in steps:  # what was merged is merged on
        share = omega * w_S[rank]
        both = w_S[target] + share
        y_SD[target] = (w_S[target] * y_SD[target] + share * y_SD[rank]) / both
        w_S[target] = both
    return y_SD, w_S


def ask(
    given: Superset, relevance_S: Tensor, budget: int, config: NestConfig, prefer: Literal["like", "unlike"] = "like"
) -> ClipTokens:
    """Choose `budget` ranks for a question: the first half as they are, then those that explain most of what matters.

    Args:
        relevance_S: likeness of each rank's clip-space vector to the question.
        prefer: what matters: ranks like the question or, as in TRIM's published code, unlike it.

    Source: REDUCERS_VIDEO.md section 7.3.
    Departs: an unlinked rank is dropped, as in `fold`; the centre of the kernel is the mean of the superset by size.
    """
    ranks, budget = len(given.id), min(max(budget, 1), len(given.id))
    z_S = relevance_S.float() - relevance_S.float().mean()
    z_S = (z_S / z_S.square().mean().sqrt().clamp(min=1e-12)).clamp(-2, 3) * (1 if prefer == "like" else -1)
    size_S1 = summed(torch.ones_like(given.holder, dtype=torch.float32), given.holder % (ranks + 1), ranks + 1)[:-1, None]
    centre_D = (size_S1 * given.features).sum(0) / size_S1.sum()
    frame_S = given.id // (len(given.holder) // given.frames)
    u_SD = directions(given.features, centre_D)
    k_SS = kernel(u_SD, frame_S, config.gamma, config.memory or given.frames / 4)
    start_1q = torch.arange((budget + 1) // 2, device=frame_S.device)[None]
    chosen = greedy(k_SS[None], rounded(z_S.exp())[None], budget - start_1q.shape[1], start_1q, frame_S)[0][0]
    kept_S = torch.zeros(ranks, dtype=torch.bool, device=frame_S.device).index_fill(0, chosen, True)
    target_S = torch.where(kept_S[given.parent], given.parent, k_SS.masked_fill(~kept_S, -1).argmax(1))
    alike_S = (u_SD * u_SD[target_S]).sum(1) >= config.gate
    folded_S = ~kept_S & torch.where(kept_S[given.parent], given.link, alike_S)
    steps = [(rank, int(target)) for rank, target in enumerate(target_S.tolist()) if bool(folded_S[rank])][::-1]
    y_SD, _ = _merged(given, steps, config.omega)
    goes_S = torch.where(kept_S, kept_S.cumsum(0) - 1, -1)
    goes_S = torch.where(folded_S, goes_S[target_S], goes_S)
    holder_M = torch.cat([goes_S, goes_S.new_full((1,), -1)])[given.holder]
    return _tokens(y_SD[kept_S], given.id[kept_S], holder_M)


def _tokens(y_KD: Tensor, id_K: Tensor, holder_M: Tensor) -> ClipTokens:
    kind_K = torch.full_like(id_K, KEPT, dtype=torch.uint8)
    found = ClipTokens(features=y_KD, anchor=id_K, kind=kind_K, holder=holder_M[:, None])
    return replace(found, kind=torch.where(found.size > 1, ENRICHED, KEPT).to(torch.uint8)).by_anchor()


def budget_for(gain_S: Tensor, coverage: float) -> int:
    """Return the shortest prefix that explains `coverage` of a clip's mass, the whole superset if none does."""
    return min(len(gain_S), 1 + int((gain_S.double().cumsum(0) < coverage).sum()))


def common_cut(gains: Sequence[Tensor], total: int, least: int = 32) -> Tensor:
    """Share `total` tokens over clips (C,), int64, so that all are cut at one common gain.

    Args:
        gains: `Superset.gain` of each clip.
        total: tokens of all clips together; what the supersets do not hold is not handed out.
        least: tokens that each clip gets, if its superset holds as many.

    Source: REDUCERS_VIDEO.md section 7.4.
    """
    tails = [gain_S[least:].cummin(0).values if len(gain_S) > least else gain_S[:0] for gain_S in gains]
    lengths = torch.tensor([len(tail) for tail in tails])
    clip = torch.repeat_interleave(torch.arange(len(tails)), lengths)
    floors = torch.tensor([len(gain_S) for gain_S in gains]) - lengths
    if total < int(floors.sum()):
        raise BudgetError(f"expected at least {int(floors.sum())} tokens for {len(tails)} clips, got {total}")
    order = torch.cat(tails).cpu().argsort(descending=True, stable=True)[: total - int(floors.sum())]
    return floors + clip[order].bincount(minlength=len(tails))


@dataclass(frozen=True)
class Nest(Fingerprinted):
    """Ranks patches so that every prefix explains as much of the clip as it can, folds the tail into the prefix.

    Source: ours; REDUCERS_VIDEO.md section 7. `supersets` is what to store, `reduce` what any budget makes of it.
    """

    config: NestConfig
    name: ClassVar[str] = "nest"
    version: ClassVar[int] = 1
    needs_text: ClassVar[bool] = False
    modifies_tower: ClassVar[bool] = False
    needs: ClassVar[frozenset[Capture]] = frozenset({ATTENTION})

    def supersets(self, tokens: VisualTokens) -> list[Superset]:
        """Return the ordered superset of each clip."""
        return build(clips_of(tokens), self.config)

    def reduce(self, tokens: VisualTokens, text: TextQuery | None = None) -> ReducedTokens:
        """Return the folded tokens of each clip, sorted by anchor."""
        found = self.supersets(tokens)
        budgets = [self._budget(one, has_cls=tokens.cls is not None) for one in found]
        folded = [fold(one, budget.patches, self.config.omega) for one, budget in zip(found, budgets, strict=True)]
        return joined(tokens, [_tokens(one.features, one.id, one.holder) for one in folded], budgets)

    def _budget(self, one: Superset, *, has_cls: bool) -> Budget:
        wanted = self.config.keep or self.config.superset
        cls = self.config.keep_cls and has_cls and wanted >= 2 * one.frames
        left = min(len(one.id), wanted - one.frames * cls)
        return Budget(patches=left, ratio=left / len(one.holder), cls=cls)
