"""`nest`: one ordered superset of a clip whose every prefix is a good reduced clip, and that folds to any budget.

Shapes: F frames, N patches, M = F * N, D width, S ranks of the superset, B budget; see `order` for the ranking.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from reducers.base import (
    CLS,
    ENRICHED,
    BudgetError,
    Capture,
    Fingerprinted,
    Order,
    ReducedTokens,
    TextQuery,
    VisualTokens,
)
from reducers.nest.order import NestConfig, Superset, build, directions, greedy, kernel, rounded
from reducers.ops.clip_budget import ATTENTION, Budget, ClipTokens, clips_of, joined, summed

ORDERED = {"parent": torch.int16, "link": torch.bool, "weight": torch.float32, "gain": torch.float32}
"""What of a superset is stored for each token beside its rank."""


def fold(given: Superset, budget: int, omega: float) -> Superset:
    """Return the first `budget` ranks; the others are merged, last first, into their parents where they are linked.

    Folding in two steps gives the same bits as folding at once. `omega` is the one that built the superset.

    Source: docs/methods/video.md section 7.2.
    """
    return fold_all([given], [budget], omega)[0]


def fold_all(given: Sequence[Superset], budgets: Sequence[int], omega: float) -> list[Superset]:
    """Return what `fold` makes of each of some clips, all of them folded together."""
    kept = [min(max(budget, 1), len(one.id)) for one, budget in zip(given, budgets, strict=True)]
    starts = [0, *accumulate(len(one.id) for one in given)]
    parents, links = (torch.cat([getattr(one, name) for one in given]).tolist() for name in ("parent", "link"))
    steps = [
        (rank, start + parents[rank])
        for start, end, budget in zip(starts, starts[1:], kept, strict=False)
        for rank in range(end - 1, start + budget - 1, -1)
        if links[rank]
    ]
    y_RD, w_R = (torch.cat([getattr(one, name) for one in given]) for name in ("features", "weight"))
    y_RD, w_R = _merged(y_RD, w_R, steps, omega)
    return [
        replace(
            one,
            **{name: getattr(one, name)[:budget] for name in ("id", "parent", "link", "gain")},
            features=y_RD[start : start + budget],
            weight=w_R[start : start + budget],
            holder=_goes(one, budget)[one.holder],
        )
        for one, start, budget in zip(given, starts, kept, strict=False)
    ]


def _goes(given: Superset, budget: int) -> Tensor:
    """Return the rank below `budget` that each rank ends up in (S + 1,), -1 for none; the last one is nobody's."""
    rank_S = torch.arange(len(given.id), device=given.id.device)
    into_S = torch.where(rank_S < budget, rank_S, torch.where(given.link, given.parent, -1))
    into_S = pad(into_S, (0, 1), value=-1)
    for _ in range(len(rank_S).bit_length()):  # twice as far each time
        into_S = into_S[into_S]
    return into_S


def _merged(y_SD: Tensor, w_S: Tensor, steps: Sequence[tuple[int, int]], omega: float) -> tuple[Tensor, Tensor]:
    """Merge ranks into their targets; return features (S, D) and weights (S,).

    What was merged is merged on, and a target takes in one after another as they come. Merges that do not wait for each
    other are done at once.
    """
    y_SD, w_S = y_SD.clone(), w_S.clone()
    turn: dict[int, int] = {}
    rounds: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for rank, target in steps:
        turn[target] = 1 + max(turn.get(rank, -1), turn.get(target, -1))
        rounds[turn[target]].append((rank, target))
    pairs_T2 = torch.tensor([pair for some in rounds.values() for pair in some], device=w_S.device).view(-1, 2)
    for pair_t2 in pairs_T2.split([len(some) for some in rounds.values()]):
        rank_t, target_t = pair_t2.unbind(1)
        own_t, share_t = w_S[target_t], omega * w_S[rank_t]
        both_t = own_t + share_t
        y_SD[target_t] = (own_t[:, None] * y_SD[target_t] + share_t[:, None] * y_SD[rank_t]) / both_t[:, None]
        w_S[target_t] = both_t
    return y_SD, w_S


def ask(
    given: Superset, relevance_S: Tensor, budget: int, config: NestConfig, prefer: Literal["like", "unlike"] = "like"
) -> ClipTokens:
    """Choose `budget` ranks for a question: the first half as they are, then those that explain most of what matters.

    Args:
        relevance_S: likeness of each rank's clip-space vector to the question.
        prefer: what matters: ranks like the question or, as in TRIM's published code, unlike it.

    Source: docs/methods/video.md section 7.3.
    Departs: an unlinked rank is dropped, as in `fold`; the centre of the kernel is the mean of the superset by size.
    """
    budget = min(max(budget, 1), len(given.id))
    frame_S = given.id // (len(given.holder) // given.frames)
    u_SD = directions(given.features, _centre(given))
    k_SS = kernel(u_SD, frame_S, given.frames, config)
    start_1q = torch.arange((budget + 1) // 2, device=frame_S.device)[None]
    mass_S = _asked_mass(relevance_S, prefer)
    chosen = greedy(k_SS[None], mass_S[None], budget - start_1q.shape[1], start_1q, frame_S, given.frames)[0][0]
    kept_S = torch.zeros_like(given.link).index_fill(0, chosen, True)
    target_S = torch.where(kept_S[given.parent], given.parent, k_SS.masked_fill(~kept_S, -1).argmax(1))
    alike_S = (u_SD * u_SD[target_S]).sum(1) >= config.gate
    folded_S = ~kept_S & torch.where(kept_S[given.parent], given.link, alike_S)
    steps = [pair for pair, folded in zip(enumerate(target_S.tolist()), folded_S.tolist(), strict=True) if folded][::-1]
    y_SD, _ = _merged(given.features, given.weight, steps, config.omega)
    goes_S = torch.where(kept_S, kept_S.cumsum(0) - 1, -1)
    goes_S = torch.where(folded_S, goes_S[target_S], goes_S)
    holder_M = torch.cat([goes_S, goes_S.new_full((1,), -1)])[given.holder]
    return _tokens(y_SD[kept_S], given.id[kept_S], holder_M)


def _centre(given: Superset) -> Tensor:
    """Return the mean of a superset by size (D,)."""
    ranks = len(given.id)
    size_S1 = summed(torch.ones_like(given.holder, dtype=torch.float32), given.holder % (ranks + 1), ranks + 1)[:-1, None]
    return (size_S1 * given.features).sum(0) / size_S1.sum()


def _asked_mass(relevance_S: Tensor, prefer: Literal["like", "unlike"]) -> Tensor:
    """Return how much each rank matters (S,): exp of its relevance, or of minus it, in standard deviations from -2 to 3."""
    z_S = relevance_S.float() - relevance_S.float().mean()
    z_S = (z_S / z_S.square().mean().sqrt().clamp(min=1e-12)).clamp(-2, 3) * (1 if prefer == "like" else -1)
    return rounded(z_S.exp())


def tokens_of(one: Superset) -> ClipTokens:
    """Return the ranks of a superset as tokens, by anchor."""
    return _tokens(one.features, one.id, one.holder)


def _tokens(y_KD: Tensor, id_K: Tensor, holder_M: Tensor) -> ClipTokens:
    return ClipTokens.by_size(y_KD, id_K, holder_M[:, None], ENRICHED).by_anchor()


def _order(reduced: ReducedTokens, folded: Sequence[Superset]) -> Order:
    """Return the order of the tokens of some clips, given what each clip was folded to."""
    rank_S = torch.full_like(reduced.anchor, -1, dtype=torch.int16)
    values = {name: torch.zeros(len(rank_S), dtype=kind, device=rank_S.device) for name, kind in ORDERED.items()}
    for number, one in enumerate(folded):
        span = reduced.clip(number)
        patch_S = reduced.kind[span] != CLS
        rank_K = one.id.argsort()  # tokens of a clip lie by anchor
        rank_S[span][patch_S] = rank_K.to(torch.int16)
        for name, kind in ORDERED.items():
            values[name][span][patch_S] = getattr(one, name)[rank_K].to(kind)
    return Order(rank=rank_S, **values)


def budget_for(gain_S: Tensor, coverage: float) -> int:
    """Return the shortest prefix that explains `coverage` of a clip's mass, the whole superset if none does."""
    return min(len(gain_S), 1 + int((gain_S.double().cumsum(0) < coverage).sum()))


def tail_of(gain_S: Tensor, least: int) -> Tensor:
    """Return the gains beyond the first `least` ranks (S - least,), each at most as large as the one before it."""
    return gain_S[least:].cummin(0).values if len(gain_S) > least else gain_S[:0]


def common_gain(gains: Sequence[Tensor], total: int, least: int = 32) -> float:
    """Return the gain at which all clips are cut so that together they keep at most `total` ranks, and hardly fewer.

    Args:
        gains: `Superset.gain` of each clip.
        total: ranks of all clips together.
        least: ranks that each clip keeps, if its superset holds as many.

    Raises:
        BudgetError: `total` is less than what the clips keep at least.

    Source: docs/methods/video.md section 7.4.
    Departs: of equal gains all are kept or none, so that a cut is one number and the clips need not know each other.
    """
    tails = torch.cat([tail_of(gain_S, least) for gain_S in gains]).double().sort(descending=True).values
    floors = sum(min(len(gain_S), least) for gain_S in gains)
    if total < floors:
        raise BudgetError(f"expected at least {floors} tokens for {len(gains)} clips, got {total}")
    if len(tails) <= total - floors:
        return 0.0
    above = tails[tails > tails[total - floors]]
    return float(above[-1]) if len(above) else 2.0  # a gain is at most 1


@dataclass(frozen=True)
class Nest(Fingerprinted):
    """Ranks patches so that every prefix explains as much of the clip as it can, folds the tail into the prefix.

    Source: ours; docs/methods/video.md section 7. `supersets` is what to store, `reduce` what any budget makes of it.
    """

    config: NestConfig
    name: ClassVar[str] = "nest"
    version: ClassVar[int] = 2
    needs: ClassVar[frozenset[Capture]] = frozenset({ATTENTION})

    def supersets(self, tokens: VisualTokens) -> list[Superset]:
        """Return the ordered superset of each clip."""
        return build(clips_of(tokens), self.config)

    def reduce(self, tokens: VisualTokens, text: TextQuery | None = None) -> ReducedTokens:
        """Return the folded tokens of each clip, sorted by anchor."""
        found = self.supersets(tokens)
        budgets = [self._budget(one, has_cls=tokens.cls is not None) for one in found]
        folded = fold_all(found, [budget.patches for budget in budgets], self.config.omega)
        reduced = joined(tokens, [tokens_of(one) for one in folded], budgets)
        return replace(reduced, order=_order(reduced, folded))

    def _budget(self, one: Superset, *, has_cls: bool) -> Budget:
        wanted, rows = self.config.keep or self.config.superset, self.config.keep_cls and has_cls
        return Budget.of(wanted, frames=one.frames, most=len(one.id), total=len(one.holder), has_cls=rows)
