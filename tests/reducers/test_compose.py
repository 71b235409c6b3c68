"""Compositions: what the first part hands over, and what the second makes of it."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reducers.base import KEPT, ReducedTokens, VisualTokens
from reducers.compose.composition import Composed
from reducers.compose.selectors import FIRST, novelty
from reducers.compose.spenders import read_clip
from reducers.methods.evs import changed
from reducers.ops.budgets import allocate
from reducers.ops.clip_budget import ATTENTION, clips_of
from reducers.ops.ranking import normalised
from reducers.registry import parse
from tests.reducers.test_invariants import clip, fields, tokens

SEEDS = st.integers(0, 10_000)
SECONDS = ("prumerge", "prumerge+", "visionzip", "hired")


def moving(seed: int, frames: int = 5) -> VisualTokens:
    """A clip in which about half of the patches stand still, give or take noise."""
    batch = tokens(seed, (frames,))
    draw = torch.Generator().manual_seed(seed + 1)
    still = torch.rand(16, generator=draw) < 0.5
    x = batch.features.clone()
    x[:, still] = x[0, still] + 0.01 * torch.randn(frames, int(still.sum()), 8, generator=draw)
    return replace(batch, features=x)


def by_anchor(reduced: ReducedTokens) -> dict[str, torch.Tensor]:
    """Tokens of one clip by the patch that they stand for."""
    order = reduced.anchor.argsort(stable=True)
    return {name: getattr(reduced, name)[order] for name in ("features", "anchor", "size", "frame", "kind")}


def composed(spec: str) -> Composed:
    found = parse(spec)
    assert isinstance(found, Composed)
    return found


@pytest.mark.parametrize(
    ("composition", "alone"),
    [
        ("alloc(ratio=0.5, keep_cls=false)|visionzip(dominant=5, contextual=3)",
         "visionzip(dominant=5, contextual=3, keep_cls=false)"),
        ("alloc(uniform, ratio=0.5, keep_cls=false)+visionzip(dominant=5, contextual=3, merge=mean)",
         "visionzip(dominant=5, contextual=3, keep_cls=false, merge=mean)"),
        ("alloc(ratio=0.25, keep_cls=false)+prumerge", "prumerge(ratio=0.25, residual=false)"),
        ("alloc(ratio=0.25, keep_cls=false)+prumerge(merge=mean, knn=4)",
         "prumerge(ratio=0.25, residual=false, merge=mean, knn=4)"),
        ("alloc(ratio=0.5, keep_cls=false)+prumerge+", "prumerge+(ratio=0.25, residual=false)"),
        ("alloc(ratio=0.25, keep_cls=false)+hired", "hired(rate=0.25)"),
        ("alloc(vcast, keep=20)|hired", "vcast(keep=20)"),
    ],
)  # fmt: skip
@given(seed=SEEDS)
def test_even_budgets_over_all_patches_give_what_the_method_gives_alone(composition: str, alone: str, seed: int) -> None:
    """A composition whose first part decides nothing is its second part, tokens sorted by anchor."""
    batch = tokens(seed, (4,))
    together, expected = parse(composition).reduce(batch), parse(alone).reduce(batch)
    for name, value in by_anchor(expected).items():
        torch.testing.assert_close(by_anchor(together)[name], value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("first", "second"), list(product(("alloc", "evs", "evs(widen=1", "tree(tau=0.3"), SECONDS)))
@given(seed=SEEDS, keep=st.integers(1, 70), frames=st.integers(1, 5))
def test_a_second_part_spends_its_budget_exactly(first: str, second: str, seed: int, keep: int, frames: int) -> None:
    """Before anything is topped up or folded: what the first part offers is what the second takes."""
    made = composed(f"{first + ', ' if '(' in first else first + '('}keep={keep})|{second}")
    batch = tokens(seed, (frames,))
    (clip,) = clips_of(batch)
    budget = made.config.first.params.budget(frames, 16, has_cls=True)
    found = made.tokens_of(clip, read_clip(batch, made.needs, 0, frames), budget)
    assert len(found.anchor) == budget.patches


@given(seed=SEEDS, keep=st.integers(2, 39))
def test_evs_lets_tokens_stand_only_where_it_finds_change(seed: int, keep: int) -> None:
    """Twice as many places as tokens, and a frame earns by how many of them it has."""
    batch = moving(seed)
    (clip,) = clips_of(batch)
    places = torch.zeros(5 * 16, dtype=torch.bool)
    places[changed(clip.x, clip.a, 2 * keep)] = True
    expected_F = allocate(keep, places.view(5, 16).sum(1), 16)
    for second in SECONDS:
        reduced = parse(f"evs(keep={keep}, keep_cls=false)|{second}").reduce(batch)
        assert bool(places[reduced.anchor.long()].all())
        assert torch.equal(reduced.frame.long().bincount(minlength=5), expected_F)


@given(seed=SEEDS)
def test_patches_that_did_not_change_are_absorbed_or_dropped_as_told(seed: int) -> None:
    """Absorbed: every patch of a frame with a contextual token is somewhere. Dropped: only places are."""
    batch = moving(seed)
    whole = parse("evs(keep=20, keep_cls=false)|visionzip(dominant=1, contextual=1)").reduce(batch)
    assert whole.owner is not None
    served = (whole.frame.long().bincount(minlength=5) >= 2).repeat_interleave(16)
    assert bool((whole.owner[served] >= 0).all())
    less = parse("evs(keep=20, keep_cls=false, absorb=false)|visionzip(dominant=1, contextual=1)").reduce(batch)
    assert less.owner is not None
    assert float(less.size.sum()) == int((less.owner >= 0).sum()) <= 40


@pytest.mark.parametrize("second", ["visionzip(merge=mean)", "hired"])
@given(seed=SEEDS, keep=st.integers(3, 60))
def test_trees_count_by_their_patches(second: str, seed: int, keep: int) -> None:
    """However often it was merged, a token is the plain mean of the patches that it holds, and its size says how many."""
    batch = moving(seed)
    reduced = parse(f"tree(keep={keep}, keep_cls=false, tau=0.6)|{second}").reduce(batch)
    assert reduced.owner is not None
    patches = batch.features.flatten(0, 1)
    for token, (value, size) in enumerate(zip(reduced.features, reduced.size, strict=True)):
        held = reduced.owner == token
        assert int(held.sum()) == int(size)
        torch.testing.assert_close(value, patches[held].mean(0), atol=1e-4, rtol=1e-4)


def test_trees_take_patches_out_of_more_than_one_frame() -> None:
    """So that the test above is about something."""
    reduced = parse("tree(keep=30, keep_cls=false, tau=0.6, segments=1, segment_tau=-1)|hired").reduce(moving(1))
    assert reduced.owner is not None
    frames = [set(((reduced.owner == token).nonzero()[:, 0] // 16).tolist()) for token in range(30)]
    assert any(len(spread) > 2 for spread in frames)


@given(seed=SEEDS)
def test_prumerge_behind_trees_weighs_neighbours_by_attention_and_size(seed: int) -> None:
    """Against a slow loop over the tokens of each frame."""
    batch = moving(seed)
    made = composed("tree(keep=20, keep_cls=false, tau=0.6)|prumerge(knn=3)")
    (clip,) = clips_of(batch)
    (places,) = FIRST["tree"].plan(clip, made.config.first.params.budget(5, 16, has_cls=True), made.config.first.params)
    a_FN, k_FND = (next(batch.captures[n] for n in made.needs if n.kind == kind and n.block == "next")
                   for kind in ("cls_attn", "keys"))  # fmt: skip
    reduced = made.reduce(batch)
    for value, anchor in zip(reduced.features, reduced.anchor.tolist(), strict=True):
        frame, patch = divmod(anchor, 16)
        likeness = (normalised(k_FND[frame]) @ normalised(k_FND[frame, patch])).tolist()
        others = [at for at in places.open[frame].nonzero()[:, 0].tolist() if at != patch]
        near = [patch, *sorted(others, key=lambda at, like=likeness: -like[at])[:2]]
        weights = torch.stack([a_FN[frame, at] * places.size[frame, at] for at in near])
        mean = sum(w * places.x[frame, at] for w, at in zip(weights, near, strict=True)) / weights.sum()
        torch.testing.assert_close(value, mean, atol=1e-4, rtol=1e-4)


def test_the_grid_of_prumerge_plus_never_takes_the_last_place() -> None:
    """As published: with the last patch the least attended, it is the one that 15 of 16 leave out."""
    batch = tokens(0, (1,))
    captures = {need: torch.arange(16.0, 0, -1)[None] / 200 if need.kind == "cls_attn" else value
                for need, value in batch.captures.items()}  # fmt: skip
    reduced = parse("alloc(keep=15, keep_cls=false)+prumerge+").reduce(replace(batch, captures=captures))
    assert reduced.anchor.tolist() == list(range(15))


@pytest.mark.parametrize("block", ["dpc", "visionzip"])
@pytest.mark.parametrize("second", SECONDS)
def test_what_stands_still_is_one_frame_and_counts_once(block: str, second: str) -> None:
    """Tokens of still patches lie in the first frame of their window; still and changing places earn alike."""
    batch = tokens(2, (5,))
    still = torch.arange(16) < 6
    x = batch.features.clone()
    x[:, still] = x[0, still]
    reduced = parse(f"static(keep=28, keep_cls=false, tau=0.999, block={block})|{second}").reduce(replace(batch, features=x))
    expected = allocate(28, torch.tensor([6, 10, 10, 10, 10, 10]), 80)
    place = reduced.anchor.long() % 16
    on_still = still[place]
    assert int(on_still.sum()) == int(expected[0])
    assert set(reduced.frame[on_still].tolist()) == {0}
    assert torch.equal(reduced.frame[~on_still].long().bincount(minlength=5), expected[1:])
    if block == "dpc" or int(expected[0]) >= 6:
        assert float(reduced.size[on_still].sum()) == 5 * 6


def test_a_clip_that_stands_still_is_spent_on_its_first_frame() -> None:
    """Five frames of the same picture: sizes count all of them."""
    batch = tokens(2, (5,))
    frozen = replace(batch, features=batch.features[:1].expand(5, -1, -1))
    reduced = parse("static(keep=10, keep_cls=false)|hired").reduce(frozen)
    assert set(reduced.frame.tolist()) == {0}
    assert float(reduced.size.sum()) == 80


def test_static_is_filled_up_where_it_has_fewer_places_than_tokens() -> None:
    """16 places for 30 tokens: the best attended others come as they are; with exact=false they do not."""
    batch = tokens(2, (5,))
    frozen = replace(batch, features=batch.features[:1].expand(5, -1, -1))
    assert len(parse("static(keep=30, keep_cls=false)|hired").reduce(frozen).features) == 30
    assert len(parse("static(keep=30, keep_cls=false, exact=false)|hired").reduce(frozen).features) == 16


def test_novelty_favours_frames_that_are_new() -> None:
    """A repeated frame earns less than the one that it repeats; the first is all new."""
    batch = tokens(4, (4,), constant=True)
    x = batch.features.clone()
    x[2] = x[1]
    (clip,) = clips_of(replace(batch, features=x))
    mass = novelty(clip)
    assert mass.argmin() == 2
    torch.testing.assert_close(mass[0], torch.tensor(16.0))
    torch.testing.assert_close(mass[2], torch.tensor(16 * 0.2), atol=1e-3, rtol=1e-3)


def test_allocate_keeps_within_a_cap_for_each_part() -> None:
    """And hands out what the capped ones cannot take."""
    assert allocate(10, torch.tensor([8.0, 1.0, 1.0]), torch.tensor([3, 9, 2])).tolist() == [3, 5, 2]
    assert allocate(99, torch.tensor([1, 0, 1]), torch.tensor([3, 0, 2])).tolist() == [3, 0, 2]


@pytest.mark.parametrize("spec", ["alloc|prumerge", "evs(keep=9)|visionzip", "static(tau=0.3)|hired", "tree|prumerge+"])
def test_clips_of_a_batch_are_reduced_as_one_by_one(spec: str) -> None:
    """Each by its own captures."""
    batch, reducer = tokens(6, (3, 1, 4)), parse(spec)
    together = reducer.reduce(batch)
    for number in range(3):
        for field, value in fields(reducer.reduce(clip(batch, number))).items():
            assert torch.equal(value, fields(together, number)[field]), field


@pytest.mark.parametrize("second", SECONDS)
def test_a_budget_of_everything_leaves_every_patch_as_it_is(second: str) -> None:
    """Nothing is merged into what is there already."""
    batch = tokens(6, (3, 2))
    whole = parse(f"alloc(keep=9999, keep_cls=false)|{second}").reduce(batch)
    assert torch.equal(whole.features, batch.features.flatten(0, 1))
    assert set(whole.kind.tolist()) == {KEPT}


@pytest.mark.parametrize("block", ["dpc", "visionzip"])
def test_tokens_that_are_not_fitted_are_sorted_all_the_same(block: str) -> None:
    """By frame and patch, though the first part handed them over in groups."""
    for seed in range(5):
        reduced = parse(f"static(keep=30, keep_cls=false, exact=false, tau=0.9, block={block})|hired").reduce(moving(seed))
        assert (reduced.anchor.diff() > 0).all()


@pytest.mark.parametrize("second", SECONDS)
@pytest.mark.parametrize("block", ["dpc", "visionzip"])
def test_where_nothing_stands_still_static_leaves_everything_to_the_second_part(second: str, block: str) -> None:
    """As even budgets for all frames do."""
    batch = tokens(8, (4,))
    one = parse(f"static(keep=30, keep_cls=false, tau=0.9999, block={block})|{second}").reduce(batch)
    other = parse(f"alloc(uniform, keep=30, keep_cls=false)|{second}").reduce(batch)
    for name, value in by_anchor(other).items():
        torch.testing.assert_close(by_anchor(one)[name], value)


def test_what_stands_still_is_merged_as_its_block_says() -> None:
    """visionzip: of twelve tokens the ten best attended patches are as they were. dpc: others, where nobody joins."""
    batch = tokens(2, (5,))
    frozen = replace(
        batch,
        features=batch.features[:1].expand(5, -1, -1),
        captures={need: value[:1].expand_as(value) for need, value in batch.captures.items()},
    )
    patches, best = frozen.features[0], frozen.capture(ATTENTION)[0].argsort(descending=True)[:10].sort().values
    same = {}
    for block in ("visionzip", "dpc"):
        reduced = parse(f"static(keep=12, keep_cls=false, block={block})|hired").reduce(frozen)
        same[block] = [at for at, value in zip(reduced.anchor.tolist(), reduced.features, strict=True)
                       if torch.allclose(value, patches[at], atol=1e-5)]  # fmt: skip
    assert same["visionzip"] == best.tolist() != same["dpc"]


@pytest.mark.parametrize("first", FIRST)
def test_a_tower_without_cls_rows_pays_for_none(first: str) -> None:
    """All tokens are patches."""
    reduced = parse(f"{first}(keep=40)|hired").reduce(replace(tokens(6, (5,)), cls=None))
    assert len(reduced.features) == len(reduced.anchor[reduced.anchor >= 0]) == 40
