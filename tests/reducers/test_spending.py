"""Second parts of a composition on places of any size, open, free or neither: against loops over the places of one row."""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reducers.base import CONTEXTUAL, ENRICHED, KEPT, Capture
from reducers.compose.candidates import Places
from reducers.compose.spenders import (
    SECOND,
    HiRedPartConfig,
    PruMergePartConfig,
    Read,
    VisionZipPartConfig,
    best,
    dense,
    prumerge_plus,
    visionzip,
)
from reducers.methods.prumerge import PruMergeConfig
from reducers.methods.visionzip import VisionZip
from reducers.ops.clip_budget import ATTENTION
from reducers.ops.density import dense_merge

SEEDS = st.integers(0, 10_000)
ROWS, PATCHES, WIDTH = 3, 9, 4


def some_places(seed: int) -> Places:
    """Rows in which places stand for none to four patches; some are free, some of these open, some of those are spent."""
    draw = torch.Generator().manual_seed(seed)
    size = torch.randint(0, 5, (ROWS, PATCHES), generator=draw).float()
    free = size > 0
    opened = free & (torch.rand(ROWS, PATCHES, generator=draw) < 0.8)
    budget = (opened.sum(1) * torch.rand(ROWS, generator=draw) * 1.2).long().clamp(max=opened.sum(1))
    return Places(
        x=torch.randn(ROWS, PATCHES, WIDTH, generator=draw),
        size=size,
        open=opened,
        free=free,
        budget=budget,
        spans=[(0, 0), (1, 3), (4, 5)],
        place=torch.full((6 * PATCHES,), -1),
    )


def some_read(seed: int) -> Read:
    """What a tower saw of six frames."""
    draw = torch.Generator().manual_seed(seed + 1)
    needs = {need for second in SECOND.values() for need in second.needs(second.config())}
    needs |= SECOND["visionzip"].needs(VisionZipPartConfig(score="received"))
    scores = {need: torch.rand(6, PATCHES, generator=draw) for need in sorted(needs, key=str) if need.kind != "keys"}
    return Read(captures=scores | {need: torch.randn(6, PATCHES, 5, generator=draw) for need in needs if need.kind == "keys"})


def mean_over(values: Tensor, places: Places, row: int) -> Tensor:
    first, last = places.spans[row]
    return torch.stack([values[frame] for frame in range(first, last + 1)]).mean(0)


def best_of(score: Tensor, among: list[int]) -> list[int]:
    """The places with the highest scores first."""
    return sorted(among, key=lambda at: -float(score[at]))


@dataclass
class Zipped:
    """What VisionZip makes of one row: value and kind of each token, and the token of each place."""

    tokens: dict[int, tuple[Tensor, int]]
    held: dict[int, int]


def zipped_by_hand(places: Places, read: Read, config: VisionZipPartConfig, row: int) -> Zipped:
    """The method as a loop over the places of a row."""
    size, x, budget = places.size[row].tolist(), places.x[row], int(places.budget[row])
    opened = [at for at in range(PATCHES) if places.open[row, at]]
    targets = int(budget * config.contextual / (config.dominant + config.contextual))
    score = Capture(kind={"cls": "cls_attn", "received": "received"}[config.score], block="selected", heads="sum")
    kept = best_of(mean_over(read.captures[score], places, row), opened)[: budget - targets]
    rest = [at for at in opened if at not in kept]
    spread = rest[:: max(1, len(rest) // max(1, targets))][:targets]
    keys = mean_over(read.captures[VisionZip.keys], places, row)
    held = {at: at for at in (*kept, *spread)}
    for at in range(PATCHES):
        if places.free[row, at] and at not in held and spread:
            held[at] = max(spread, key=lambda to: float(torch.cosine_similarity(keys[at], keys[to], dim=0)))
    tokens = {at: (x[at], CONTEXTUAL if size[at] > 1 else KEPT) for at in kept}
    for to in spread:
        joined = [at for at, token in held.items() if token == to and at != to]
        taken, count = sum((size[at] * x[at] for at in joined), torch.zeros(WIDTH)), sum(size[at] for at in joined)
        added = x[to] + taken / max(1, count)
        tokens[to] = (added if config.merge == "add" else (size[to] * x[to] + taken) / (size[to] + count)), CONTEXTUAL
    return Zipped(tokens=tokens, held=held)


@pytest.mark.parametrize(
    "config",
    [
        VisionZipPartConfig(),
        VisionZipPartConfig(dominant=1, contextual=2),
        VisionZipPartConfig(dominant=1, contextual=1, merge="mean"),
        VisionZipPartConfig(dominant=0, contextual=1, merge="mean", score="received"),
        VisionZipPartConfig(dominant=1, contextual=1, score="received"),
        VisionZipPartConfig(dominant=1, contextual=0),
    ],
    ids=str,
)
@given(seed=SEEDS)
def test_visionzip_spends_places_as_a_loop_does(config: VisionZipPartConfig, seed: int) -> None:
    """Scores and keys are means over the frames of a row; what is merged counts by its patches; only free places join."""
    places, read = some_places(seed), some_read(seed)
    spent = visionzip(places, read, config)
    for row in range(ROWS):
        expected = zipped_by_hand(places, read, config, row)
        assert spent.token[row].nonzero()[:, 0].tolist() == sorted(expected.tokens)
        assert {at: to for at, to in enumerate(spent.held[row].tolist()) if to >= 0} == expected.held
        for at, (value, kind) in expected.tokens.items():
            torch.testing.assert_close(spent.value[row, at], value, atol=1e-5, rtol=1e-5)
            if torch.equal(value, places.x[row, at]):  # what is kept is not even rounded
                assert torch.equal(spent.value[row, at], value)
            assert int(spent.kind[row, at]) == kind


@given(seed=SEEDS)
def test_hired_keeps_the_best_attended_open_places_as_they_are(seed: int) -> None:
    """And says of each whether it stands for more than one patch."""
    places, read = some_places(seed), some_read(seed)
    spent = best(places, read, HiRedPartConfig())
    for row in range(ROWS):
        opened = places.open[row].nonzero()[:, 0].tolist()
        kept = sorted(best_of(mean_over(read.captures[ATTENTION], places, row), opened)[: int(places.budget[row])])
        assert spent.token[row].nonzero()[:, 0].tolist() == kept
        assert [int(spent.kind[row, at]) for at in kept] == [CONTEXTUAL if places.size[row, at] > 1 else KEPT for at in kept]
        assert torch.equal(spent.value[row, kept], places.x[row, kept])
        assert {at: to for at, to in enumerate(spent.held[row].tolist()) if to >= 0} == {at: at for at in kept}


@pytest.mark.parametrize("heads", ["concat", "sum"])
@given(seed=SEEDS)
def test_prumerge_plus_takes_half_by_attention_and_the_grid_over_open_places(heads: str, seed: int) -> None:
    """The larger half first; the grid begins half a stride in and leaves out the last place; then down the ranking."""
    config = PruMergePartConfig(heads=heads)
    places, read = some_places(seed), some_read(seed)
    (need,) = (need for need in SECOND["prumerge+"].needs(config) if need.kind == "cls_attn")
    read = Read(captures={**read.captures, need: torch.rand(6, PATCHES, generator=torch.Generator().manual_seed(seed + 2))})
    spent = prumerge_plus(places, read, config)
    for row in range(ROWS):
        opened, budget = places.open[row].nonzero()[:, 0].tolist(), int(places.budget[row])
        order = best_of(mean_over(read.captures[need], places, row), opened)
        top = (budget + 1) // 2
        stride = max(1, len(opened) // max(1, top))
        grid = opened[stride // 2 : -1 : stride]
        chosen = list(dict.fromkeys([*order[:top], *grid, *order]))[:budget]
        assert spent.token[row].nonzero()[:, 0].tolist() == sorted(chosen)
        assert {int(spent.kind[row, at]) for at in chosen} <= {ENRICHED}
        assert {at: to for at, to in enumerate(spent.held[row].tolist()) if to >= 0} == {at: at for at in chosen}


@pytest.mark.parametrize("second", SECOND)
def test_rows_without_a_budget_get_no_token(second: str) -> None:
    """Also where no row of a clip has one."""
    places, read = replace(some_places(1), budget=torch.zeros(ROWS, dtype=torch.int64)), some_read(1)
    spent = SECOND[second].spend(places, read, SECOND[second].config())
    assert not spent.token.any()
    assert (spent.held == -1).all()


@pytest.mark.parametrize("second", ["prumerge", "prumerge+"])
@given(seed=SEEDS)
def test_closed_places_are_no_neighbours_of_prumerge(second: str, seed: int) -> None:
    """Whatever they look like; what is not open weighs nothing."""
    places, read = some_places(seed), some_read(seed)
    other = replace(places, x=torch.where(places.open[..., None], places.x, 99.0))
    one, two = (SECOND[second].spend(given, read, PruMergePartConfig()) for given in (places, other))
    assert torch.equal(one.value[one.token], two.value[two.token])


@pytest.mark.parametrize("neighbours", [1, 2, 4, 50])
@given(seed=SEEDS)
def test_density_is_that_of_the_open_places_alone(neighbours: int, seed: int) -> None:
    """Closed places are no neighbours, join nobody and become nothing; two neighbours are the least, all there are the most."""
    places = some_places(seed)
    spent = dense(places, 0.6, neighbours)
    for row in range(ROWS):
        opened, budget = places.open[row].nonzero()[:, 0], int(places.budget[row])
        near = torch.tensor([min(max(2, neighbours), len(opened))])
        if budget == 0:
            assert not spent.token[row].any()
            assert spent.held[row].tolist() == [-1] * PATCHES
            continue
        alone = places.x[row, opened][None]
        token, value, held = dense_merge(alone, torch.ones(1, len(opened), dtype=torch.bool), torch.tensor([budget]), near, 0.6)
        assert torch.equal(spent.token[row].nonzero()[:, 0], opened[token[0]])
        torch.testing.assert_close(spent.value[row, opened][token[0]], value[0, token[0]])
        expected = torch.full((PATCHES,), -1)
        expected[opened] = opened[held[0]]
        assert torch.equal(spent.held[row], expected)
        merged = places.size[row] > 1
        assert spent.kind[row, opened[token[0]]].tolist() == torch.where(merged, CONTEXTUAL, KEPT)[opened[token[0]]].tolist()


def test_parameters_of_prumerge_reach_what_is_read() -> None:
    """By itself and as a second part the defaults are the same; `heads` is about the attention, keys are always whole."""
    alone, part = PruMergeConfig(), PruMergePartConfig()
    assert part.knn == alone.knn
    assert {(need.kind, need.block, need.heads) for need in SECOND["prumerge"].needs(part)} == {
        ("cls_attn", "next", "concat"),
        ("keys", "next", "concat"),
    }
    for name in ("prumerge", "prumerge+"):
        needs = SECOND[name].needs(PruMergePartConfig(heads="sum", score_block="selected"))
        assert {(need.kind, need.block, need.heads) for need in needs} == {
            ("cls_attn", "selected", "sum"),
            ("keys", "selected", "concat"),
        }
