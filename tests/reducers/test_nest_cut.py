"""Stored entries of `nest`: what is refused before it is cut, and how a budget is parted."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from reducers.base import ReducedTokens, ReducerError
from reducers.nest.cut import StoredNest
from reducers.nest.order import NestConfig
from reducers.nest.reducer import Nest
from tests.reducers.test_fit import related

CONFIG = NestConfig(superset=24, gate=0.3)
FRAMES = 4


def stored(keep_cls: bool = True) -> ReducedTokens:
    """One clip of 4 frames of 4 x 4 patches: 24 ranks, or 20 beside 4 CLS rows."""
    return Nest(replace(CONFIG, keep_cls=keep_cls)).reduce(related(3, (FRAMES,)))


def opened(tokens: ReducedTokens, vectors: torch.Tensor | None = None) -> StoredNest:
    return StoredNest.of(tokens, (FRAMES, 4, 4), CONFIG, vectors)


def with_order(name: str, at: int, value: int) -> Callable[[ReducedTokens], ReducedTokens]:
    """Change one number of the order, at the first patch or at the last."""

    def change(tokens: ReducedTokens) -> ReducedTokens:
        assert tokens.order is not None
        values = getattr(tokens.order, name).clone()
        values[(tokens.order.rank >= 0).nonzero()[at, 0]] = value
        return replace(tokens, order=replace(tokens.order, **{name: values}))

    return change


def with_owner(value: int) -> Callable[[ReducedTokens], ReducedTokens]:
    def change(tokens: ReducedTokens) -> ReducedTokens:
        assert tokens.owner is not None
        return replace(tokens, owner=tokens.owner.index_fill(0, torch.tensor([5]), value))

    return change


def with_anchor(value: int) -> Callable[[ReducedTokens], ReducedTokens]:
    return lambda tokens: replace(tokens, anchor=tokens.anchor.index_fill(0, torch.tensor([1]), value))


LIES: dict[str, tuple[Callable[[ReducedTokens], ReducedTokens], str]] = {
    "no order": (lambda tokens: replace(tokens, order=None), "have no order"),
    "no owners": (lambda tokens: replace(tokens, owner=None), "have no order"),
    "a rank twice": (with_order("rank", 0, 3), "not a permutation"),
    "a rank too high": (with_order("rank", 0, 20), "not a permutation"),
    "a parent too high": (with_order("parent", -1, 20), "parents below 20"),
    "a negative parent": (with_order("parent", 0, -1), "parents below 20"),
    "an owner too high": (with_owner(24), "owners below 24"),
    "an owner too low": (with_owner(-2), "owners below 24"),
    "an anchor too high": (with_anchor(64), "anchors of 64 patches"),
    "no anchor": (with_anchor(-1), "anchors of 64 patches"),
}


@pytest.mark.parametrize("name", LIES)
def test_an_order_that_lies_is_refused(name: str) -> None:
    """Before anything is looked up by it; the highest number that can be is none."""
    change, said = LIES[name]
    with pytest.raises(ReducerError, match=said):
        opened(change(stored()))
    truth = stored()
    for harmless in (with_order("parent", -1, 19), with_owner(23), with_owner(-1)):
        assert len(opened(harmless(truth)).superset.id) == 20


@pytest.mark.parametrize(
    ("budget", "patches", "cls"),
    [(1, 1, 0), (4, 4, 0), (7, 7, 0), (8, 4, 4), (9, 5, 4), (20, 16, 4), (24, 20, 4), (99, 20, 4), (0, 1, 0)],
)
def test_a_budget_is_parted_as_encoding_parts_it(budget: int, patches: int, cls: int) -> None:
    """CLS rows once as many patches fit beside them; never nothing, never more than there is."""
    cut = opened(stored()).cut(budget)
    assert (int((cut.anchor >= 0).sum()), int((cut.anchor < 0).sum())) == (patches, cls)
    bare = opened(stored(keep_cls=False)).cut(budget)
    assert (int((bare.anchor >= 0).sum()), int((bare.anchor < 0).sum())) == (min(max(budget, 1), 24), 0)


def test_the_least_for_a_coverage_pays_for_cls_rows_too() -> None:
    """Where they are kept: the patches of that budget explain the share, and those of one patch less do not."""
    for keep_cls in (True, False):
        held = opened(stored(keep_cls))
        explained = held.superset.gain.double().cumsum(0)
        for share in (0.2, 0.4, 0.6):
            patches = int((held.cut(held.least_for(share)).anchor >= 0).sum())
            assert explained[patches - 1] >= share
            assert patches == 1 or explained[patches - 2] < share
        assert held.least_for(0.999) == 24


def test_a_cut_at_a_gain_keeps_the_ranks_that_gain_as_much() -> None:
    """The gain itself among them; the first ones in any case; CLS rows are paid for where they are kept."""
    held = opened(stored())
    gains = held.superset.gain.cummin(0).values
    for rank in (6, 11, 19):
        kept = int((gains >= gains[rank]).sum())
        assert held.cut_at(float(gains[rank]), least=1) == kept + FRAMES
        assert int((held.cut(held.cut_at(float(gains[rank]), least=1)).anchor >= 0).sum()) == kept
    assert held.cut_at(2.0, least=3) == 3
    assert held.cut_at(2.0, least=4) == 4 + FRAMES
    assert held.cut_at(0.0) == 24


def test_a_question_needs_vectors_of_the_same_space() -> None:
    """As wide as its own, with numbers in them."""
    plain, vectors = stored(), torch.randn(24, 6, generator=torch.Generator().manual_seed(1))
    with pytest.raises(ReducerError, match="--clip-space True"):
        opened(plain).ask(torch.ones(6), 8)
    held = opened(plain, vectors)
    for wrong in (torch.ones(5), torch.ones(6, 1), torch.full((6,), torch.nan)):
        with pytest.raises(ReducerError, match=r"finite text vector \(6,\)"):
            held.ask(wrong, 8)
    like, unlike = held.ask(vectors[3], 8), held.ask(vectors[3], 8, "unlike")
    assert len(like.features) == len(unlike.features) == 8
    assert like.anchor.tolist() != unlike.anchor.tolist()
