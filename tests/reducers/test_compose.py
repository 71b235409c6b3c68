"""Compositions: what the first part hands over, what the second makes of it, and what is refused."""

import json
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reducers.base import KEPT, ReducedTokens, ReducerError, ReducerSpecError, VisualTokens
from reducers.budgets import allocate
from reducers.compose import Composed
from reducers.evs import changed
from reducers.fit import ATTENTION, clips_of
from reducers.ranking import normalised
from reducers.registry import parse
from reducers.spending import SECOND, read_clip
from reducers.stages import FIRST, novelty
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


def test_prumerge_merges_by_mean_behind_trees_and_adds_elsewhere() -> None:
    """Said in the fingerprint, so that the default cannot change behind a store's back."""
    assert '"merge":"mean"' in parse("tree+prumerge").fingerprint()
    assert '"merge":"add"' in parse("evs+prumerge").fingerprint()


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


@pytest.mark.parametrize(("first", "second"), list(product(FIRST, SECOND)))
def test_either_sign_joins_and_the_fingerprint_holds_both_parts(first: str, second: str) -> None:
    """Names that end in a plus sign stay whole."""
    made = parse(f"{first}|{second}")
    assert made.name == f"{first}|{second}"
    for spelled in (f"{first}+{second}", f" {first} ( ) + {second}( )", f"{first}(ratio=1/4)|{second}"):
        assert parse(spelled).fingerprint() == made.fingerprint()
    described = json.loads(made.fingerprint())
    for part, name in (("first", first), ("second", second)):
        assert described["params"][part]["name"] == name
        assert described["params"][part]["version"] >= 1
    assert set(described["params"]["first"]["params"]) == set(vars(made.config.first.params))
    assert set(described["params"]["second"]["params"]) == set(vars(made.config.second.params))
    assert parse(f"{first}(keep=9)|{second}").fingerprint() != made.fingerprint()


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


@pytest.mark.parametrize(("first", "second"), list(product(FIRST, SECOND)))
def test_every_composition_reads_the_attention_that_first_parts_weigh(first: str, second: str) -> None:
    """Also where the second part looks at another block."""
    assert ATTENTION in parse(f"{first}|{second}").needs


def test_five_tokens_of_visionzip_are_dominant_to_one_that_is_not() -> None:
    """Unless told otherwise; said in the fingerprint."""
    params = json.loads(parse("alloc|visionzip").fingerprint())["params"]["second"]["params"]
    assert (params["dominant"], params["contextual"]) == (5, 1)


def test_the_tower_is_asked_for_what_either_part_reads() -> None:
    """And a capture that it did not take is named."""
    kinds = {(need.kind, need.block, need.heads) for need in parse("static(block=visionzip)|prumerge").needs}
    read = [("cls_attn", "selected", "sum"), ("keys", "selected", "mean")]
    assert kinds == {*read, ("cls_attn", "next", "concat"), ("keys", "next", "concat")}
    batch = tokens(0, (3,))
    held = {need: value for need, value in batch.captures.items() if need.block != "next"}
    with pytest.raises(ReducerError, match="expected capture"):
        parse("alloc+prumerge").reduce(replace(batch, captures=held))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("alloc", "stands before another"),
        ("alloc|", "expected a reducer such as"),
        ("|visionzip", "expected a reducer such as"),
        ("alloc visionzip", "expected a reducer such as"),
        ("alloc(keep=8))|visionzip", "expected a reducer such as"),
        ("alloc||visionzip", "expected a reducer such as"),
        ("alloc+magic", "unknown part 'magic'"),
        ("magic|visionzip", "unknown part 'magic'"),
        ("visionzip|evs", "expected one of alloc, evs, static, tree, then one of"),
        ("prumerge+visionzip", "got prumerge|visionzip"),
        ("alloc|evs", "then one of"),
        ("alloc|evs|visionzip", "got alloc|evs|visionzip"),
        ("nest|visionzip", "expected one of alloc"),
        ("evs|trim", "reads the question"),
        ("trim|visionzip", "reads the question"),
        ("alloc+tome", "inside the tower"),
        ("tome(keep=64)+visionzip", "inside the tower"),
        ("alloc(keep=0)+visionzip", "keep >= 1"),
        ("alloc(ratio=0)+visionzip", "ratio in (0, 1]"),
        ("alloc(ratio=1.5)+visionzip", "ratio in (0, 1]"),
        ("evs(keep=8, ratio=0.5)|visionzip", "keep or ratio"),
        ("evs(keep=8, widen=0.5)|visionzip", "widen >= 1"),
        ("evs(keep=8, compat=true)|visionzip", "unknown parameter"),
        ("alloc(loud)+visionzip", "unknown parameter 'loud'"),
        ("alloc(weights=loud)+visionzip", "uniform|vcast|unicomp|novelty"),
        ("alloc(vcast, temperature=0)+hired", "temperature > 0"),
        ("alloc(uniform, vcast)+hired", "twice"),
        ("static(tau=2)|hired", "tau in [-1, 1]"),
        ("static(tau_mode=quantile)|hired", "calibrated_tau"),
        ("static(neighbours=0)|hired", "neighbours"),
        ("tree(segments=0)|hired", "segments >= 1"),
        ("tree+prumerge(merge=add)", "merge=mean"),
        ("alloc(keep=64)+prumerge(ratio=0.5)", "budget and CLS rows are said in its first part"),
        ("alloc(keep=64)+prumerge(residual=true)", "budget and CLS rows are said in its first part"),
        ("alloc(keep=64)+prumerge(knn=-1)", "knn"),
        ("evs(keep=64)|hired(rate=0.5)", "budget and CLS rows are said in its first part"),
        ("evs(keep=64)|visionzip(keep_cls=false)", "budget and CLS rows are said in its first part"),
        ("evs(keep=64)|visionzip(dominant=0, contextual=0)", "one of them above"),
        ("evs|visionzip(dominant=14, contextual=3)", "only a proportion"),
        ("evs(keep=8)|visionzip(dominant=-1, contextual=7)", "of at least 0"),
        ("evs(keep=8)|visionzip(dominant=7, contextual=-1)", "of at least 0"),
    ],
)  # fmt: skip
def test_a_composition_that_cannot_be_is_refused_in_one_line(spec: str, said: str) -> None:
    """When it is parsed, before anything is read."""
    with pytest.raises(ReducerSpecError) as caught:
        parse(spec)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
