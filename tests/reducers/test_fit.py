"""Methods on whole clips: what holds for all of them, and how their budgets are met to the token."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reducers.base import CLS, CONTEXTUAL, ENRICHED, KEPT, BudgetError, Reducer, ReducerError, VisualTokens
from reducers.methods.dycoke import DyCoke, DyCokeConfig
from reducers.methods.evs import Evs, EvsConfig
from reducers.methods.fastvid import FastVid, FastVidConfig
from reducers.methods.flashvid import FlashVid, FlashVidConfig
from reducers.methods.holitom import HoliTom, HoliTomConfig
from reducers.methods.unicomp import UniComp, UniCompConfig
from reducers.methods.vcast import VCast, VCastConfig
from reducers.nest.order import NestConfig
from reducers.nest.reducer import Nest
from reducers.ops.clip_budget import ATTENTION, Clip, ClipConfig, ClipTokens, clips_of, fit_budget, kept
from reducers.ops.ranking import adjacent_likeness
from reducers.ops.similarity import calibrated_tau
from tests.reducers.test_invariants import clip, fields, tokens

REDUCERS: dict[str, Reducer] = {
    "evs": Evs(EvsConfig()),
    "evs, few": Evs(EvsConfig(keep=3)),
    "dycoke": DyCoke(DyCokeConfig()),
    "dycoke, half": DyCoke(DyCokeConfig(ratio=0.5, keep_cls=False)),
    "vcast": VCast(VCastConfig(ratio=0.4)),
    "fastvid": FastVid(FastVidConfig()),
    "fastvid, all contexts": FastVid(FastVidConfig(context_share=1.0, stride=2, tau=-1.0, segments=1)),
    "holitom": HoliTom(HoliTomConfig(tau=0.3)),
    "holitom, contexts": HoliTom(HoliTomConfig(tau=0.3, context_share=0.5, ratio=0.5)),
    "flashvid": FlashVid(FlashVidConfig(tau=0.3)),
    "flashvid, v2": FlashVid(FlashVidConfig(tau=0.1, selection="v2", segments=1, segment_tau=-1.0, ratio=0.5)),
    "unicomp": UniComp(UniCompConfig()),
    "unicomp, keys": UniComp(UniCompConfig(metric="keys", spatial_uniqueness=0.8, frame_uniqueness=0.9, keep=9)),
    "nest": Nest(NestConfig(keep=12)),
    "nest, little absorbed": Nest(NestConfig(superset=20, keep=10, gate=0.3, keep_cls=False)),
}
LENGTHS = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)


def related(seed: int, lengths: tuple[int, ...], copies: str = "noisy") -> VisualTokens:
    """Clips whose frames have something in common: noisy copies of their first one, exact copies, or nothing."""
    batch = tokens(seed, lengths)
    if copies == "none":
        return batch
    first = batch.features[batch.clip_ptr[:-1]].repeat_interleave(batch.clip_ptr.diff(), 0)
    if copies == "constant":
        return replace(batch, features=torch.ones_like(first), cls=torch.ones_like(first[:, 0]))
    return replace(batch, features=first + (0.4 if copies == "noisy" else 0) * batch.features)


COPIES = st.sampled_from(["none", "noisy", "exact", "constant"])


@pytest.mark.parametrize("name", REDUCERS)
@settings(max_examples=30)
@given(seed=st.integers(0, 9999), lengths=LENGTHS, copies=COPIES)
def test_a_batch_reduces_as_its_clips_one_by_one(name: str, seed: int, lengths: tuple[int, ...], copies: str) -> None:
    """To the bit, whoever shares the batch."""
    batch, reducer = related(seed, lengths, copies), REDUCERS[name]
    together = reducer.reduce(batch)
    for number in range(len(lengths)):
        for field, value in fields(reducer.reduce(clip(batch, number))).items():
            assert torch.equal(value, fields(together, number)[field]), field


@pytest.mark.parametrize("name", REDUCERS)
@settings(max_examples=30)
@given(seed=st.integers(0, 9999), lengths=LENGTHS, copies=COPIES)
def test_what_comes_out_is_well_formed(name: str, seed: int, lengths: tuple[int, ...], copies: str) -> None:
    """The budget to the token, unique rising anchors, owners that agree with sizes, finite values, CLS in front."""
    batch, reducer = related(seed, lengths, copies), REDUCERS[name]
    before = [batch.features.clone(), batch.capture(ATTENTION).clone()]
    reduced = reducer.reduce(batch)
    assert all(torch.equal(a, b) for a, b in zip(before, [batch.features, batch.capture(ATTENTION)], strict=True))
    assert reduced.features.isfinite().all()
    assert reduced.owner is not None
    for number, frames in enumerate(lengths):
        one, total = fields(reduced, number), frames * 16
        config = reducer.config
        wanted = config.keep or max(1, int(total * config.ratio))
        cls = config.keep_cls and wanted >= 2 * frames
        assert len(one["anchor"]) == min(wanted, min(total, getattr(config, "superset", total)) + cls * frames)
        assert int((one["kind"] == CLS).sum()) == cls * frames
        anchors = one["anchor"][one["anchor"] >= 0]
        assert (anchors.diff() > 0).all()
        assert (one["frame"].diff() >= 0).all()
        assert torch.equal(one["frame"][one["anchor"] >= 0].long(), anchors.long() // 16)
        if cls:
            starts = torch.cat([torch.ones(1, dtype=torch.bool), one["frame"].diff() > 0])
            assert torch.equal(starts, one["kind"] == CLS)
        start = int(batch.clip_ptr[number]) * 16
        owner = reduced.owner[start : start + total].long()
        assert torch.equal(owner[anchors.long()], (one["anchor"] >= 0).nonzero()[:, 0])
        assert float(one["size"].sum()) == pytest.approx(int((owner >= 0).sum()), abs=1e-3)
        assert ((one["size"] > 0) == (one["kind"] != CLS)).all()


@pytest.mark.parametrize("name", [name for name, reducer in REDUCERS.items() if not isinstance(reducer, Nest)])
def test_a_budget_of_everything_changes_nothing(name: str) -> None:
    """Every patch as it was, beside every CLS row."""
    batch, reducer = related(5, (3, 1)), REDUCERS[name]
    build, config = type(reducer), replace(reducer.config, keep=10_000, ratio=None)
    whole = build(config).reduce(batch)
    assert torch.equal(whole.features[whole.anchor >= 0], batch.features.flatten(0, 1))
    assert len(whole.features) == 4 * 16 + 4 * config.keep_cls


@pytest.mark.parametrize("name", REDUCERS)
def test_half_precision_keeps_the_same_patches(name: str) -> None:
    """Scores are float32 whatever the features are; only values are rounded."""
    batch = related(3, (4, 2))
    half = replace(batch, features=batch.features.half(), cls=None if batch.cls is None else batch.cls.half())
    full, low = REDUCERS[name].reduce(batch), REDUCERS[name].reduce(half)
    assert low.features.dtype == torch.float16
    assert torch.equal(full.anchor, low.anchor)
    torch.testing.assert_close(low.features.float(), full.features, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("name", REDUCERS)
@pytest.mark.parametrize("where", ["features", "captures"])
def test_a_value_that_is_not_finite_is_an_error_that_names_the_frame(name: str, where: str) -> None:
    """Never a silent choice by NaN."""
    batch = tokens(3, (4, 2))
    if where == "features":
        batch.features[5, 3, 1] = math.nan
    else:
        batch.captures[ATTENTION][5, 2] = math.inf
    with pytest.raises(ReducerError, match="frame 5"):
        REDUCERS[name].reduce(batch)


@pytest.mark.parametrize("name", REDUCERS)
@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (3, 5), (16, 16)])
def test_grids_of_any_shape_are_reduced(name: str, grid: tuple[int, int]) -> None:
    """One patch, one row, one that is not square, the real model's; a tower without CLS too."""
    batch = tokens(1, (3, 1), grid)
    assert len(REDUCERS[name].reduce(batch).features) >= 2
    assert (REDUCERS[name].reduce(replace(batch, cls=None)).kind != CLS).all()


def test_a_frame_that_nothing_attends_to_has_no_attention_and_is_no_error() -> None:
    """Zero over zero would be no number, and be chosen first."""
    batch = tokens(3, (3,))
    batch.captures[ATTENTION][1] = 0
    (one,) = clips_of(batch)
    assert one.a.sum(1).tolist() == pytest.approx([1, 0, 1])
    reduced = Evs(EvsConfig(keep=7, keep_cls=False)).reduce(batch)
    assert len(reduced.anchor) == 7


def test_positions_are_frame_row_and_column_and_cls_rows_have_none() -> None:
    """On a grid that is not square, over two clips; the anchor of a CLS row is -1 and its frame its own."""
    reduced = Evs(EvsConfig(keep=23)).reduce(tokens(1, (3, 2), (3, 5)))
    cls = reduced.kind == CLS
    assert reduced.frame[cls].tolist() == [0, 1, 2, 0, 1]
    assert reduced.anchor[cls].tolist() == [-1] * 5
    assert reduced.position[cls].tolist() == [[-1.0] * 3] * 5
    for frame, anchor, position in zip(reduced.frame[~cls], reduced.anchor[~cls], reduced.position[~cls], strict=True):
        assert position.tolist() == [int(frame), int(anchor) % 15 // 5, int(anchor) % 5]


def clip_of(seed: int, frames: int, patches: int = 9, width: int = 6) -> Clip:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(frames, patches, width, generator=draw)
    a = torch.randn(frames, patches, generator=draw).softmax(-1)
    return Clip(x=x, a=a, g=x.mean(1), metric=x)


def some_tokens(clip: Clip, seed: int, tokens: int) -> ClipTokens:
    """Some patches as anchors; every other patch is held by one or two of them, or dropped."""
    draw = torch.Generator().manual_seed(seed)
    total = clip.a.numel()
    anchor = torch.randperm(total, generator=draw)[:tokens]
    holder = torch.randint(-1, tokens, (total, 2), generator=draw)
    holder[anchor] = torch.stack([torch.arange(tokens), torch.full((tokens,), -1)], dim=1)
    plain = kept(clip, anchor)
    return ClipTokens(features=plain.features, anchor=anchor, kind=plain.kind, holder=holder)


@given(seed=st.integers(0, 999), frames=st.integers(1, 4), share=st.floats(0.05, 1), budget=st.integers(1, 40))
def test_any_result_is_fitted_to_any_budget(seed: int, frames: int, share: float, budget: int) -> None:
    """Exactly as many tokens, unique rising anchors, and no patch counted twice or lost."""
    clip = clip_of(seed, frames)
    found = some_tokens(clip, seed, max(1, int(share * clip.a.numel())))
    fitted = fit_budget(found, clip, budget)
    assert len(fitted.anchor) == min(budget, clip.a.numel())
    assert (fitted.anchor.diff() > 0).all()
    assert (fitted.size > 0).all()
    held_before = (found.holder >= 0).any(1)
    held_before[fitted.anchor] = True
    assert float(fitted.size.sum()) == pytest.approx(int(held_before.sum()), abs=1e-3)
    assert fitted.features.isfinite().all()


def folded_by_hand(clip: Clip, found: ClipTokens, budget: int) -> dict[int, torch.Tensor]:
    """Rule 6 as a loop over tokens: what is left, by anchor."""
    patches = clip.a.shape[1]
    rows = {int(a): [x, float(s)] for a, x, s in zip(found.anchor, found.features, found.size, strict=True)}
    while len(rows) > budget:
        worst = min(rows, key=lambda anchor: (float(clip.a.flatten()[anchor]), anchor))
        value, size = rows.pop(worst)
        nearest = min(abs(anchor // patches - worst // patches) for anchor in rows)
        near = [anchor for anchor in sorted(rows) if abs(anchor // patches - worst // patches) == nearest]
        into = max(near, key=lambda anchor: float(torch.cosine_similarity(rows[anchor][0], value, dim=0)))
        both = rows[into][1] + size
        rows[into] = [(rows[into][1] * rows[into][0] + size * value) / both, both]
    return {anchor: rows[anchor][0] for anchor in sorted(rows)}


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("budget", [1, 2, 7, 20])
def test_too_many_tokens_are_folded_as_a_loop_folds_them(seed: int, budget: int) -> None:
    """The least attended first, into the likest of its frame or of the nearest frame, weighted by size."""
    clip = clip_of(seed, 3)
    found = some_tokens(clip, seed, 21)
    fitted, expected = fit_budget(found, clip, budget), folded_by_hand(clip, found, budget)
    assert fitted.anchor.tolist() == list(expected)
    torch.testing.assert_close(fitted.features, torch.stack(list(expected.values())), atol=1e-5, rtol=1e-4)


def test_a_kept_patch_that_takes_another_in_is_enriched_and_what_was_merged_stays_what_it_was() -> None:
    """Tokens that take nothing in keep their kind."""
    clip = clip_of(1, 1)
    plain = kept(clip, torch.arange(9))
    assert sorted(fit_budget(plain, clip, 8).kind.tolist()) == [KEPT] * 7 + [ENRICHED]
    merged = replace(plain, kind=torch.full((9,), CONTEXTUAL, dtype=torch.uint8))
    assert set(fit_budget(merged, clip, 4).kind.tolist()) == {CONTEXTUAL}


def test_too_few_tokens_are_joined_by_the_best_attended_that_are_absent() -> None:
    """As they are, and what had taken them in keeps its value but not their count."""
    clip = clip_of(1, 2)
    holder = torch.zeros(18, 1, dtype=torch.int64)
    one = ClipTokens(
        features=clip.x.mean((0, 1))[None], anchor=torch.tensor([4]), kind=torch.tensor([2]), holder=holder
    )
    fitted = fit_budget(one, clip, 3)
    best = [place for place in clip.a.flatten().argsort(descending=True).tolist() if place != 4][:2]
    assert fitted.anchor.tolist() == sorted([4, *best])
    at = fitted.anchor.tolist().index(4)
    assert fitted.size.tolist() == [16.0 if place == at else 1.0 for place in range(3)]
    assert torch.equal(fitted.features[at], one.features[0])
    assert fitted.kind.tolist() == [2 if place == at else KEPT for place in range(3)]
    assert torch.equal(fitted.features[fitted.anchor == best[0]][0], clip.x.flatten(0, 1)[best[0]])


def test_a_fitted_result_mutates_nothing_that_it_was_given() -> None:
    """Neither the clip nor the tokens."""
    clip = clip_of(2, 2)
    found = some_tokens(clip, 2, 9)
    before = [clip.x.clone(), clip.a.clone(), found.features.clone(), found.holder.clone(), found.kind.clone()]
    for budget in (2, 14):
        fit_budget(found, clip, budget)
    after = [clip.x, clip.a, found.features, found.holder, found.kind]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("config", "patches", "ratio", "cls"),
    [
        (ClipConfig(), 504, 504 / 2048, True),
        (ClipConfig(keep_cls=False), 512, 0.25, False),
        (ClipConfig(keep=256), 248, 248 / 2048, True),
        (ClipConfig(keep=16), 8, 8 / 2048, True),
        (ClipConfig(keep=15), 15, 15 / 2048, False),  # 8 CLS rows would leave less than as many patches
        (ClipConfig(ratio=1), 2040, 2040 / 2048, True),
        (ClipConfig(ratio=1e-6), 1, 1e-6, False),
        (ClipConfig(keep=99999), 2048, 1.0, True),
    ],
)
def test_a_budget_counts_cls_rows(config: ClipConfig, patches: int, ratio: float, cls: bool) -> None:
    """Eight frames of 256 patches."""
    budget = config.budget(8, 256, has_cls=True)
    assert (budget.patches, budget.cls) == (patches, cls)
    assert budget.ratio == pytest.approx(ratio)


def test_a_tower_without_cls_rows_spends_everything_on_patches() -> None:
    """Asking for rows that are not there costs nothing."""
    budget = ClipConfig(keep=256).budget(8, 256, has_cls=False)
    assert (budget.patches, budget.cls) == (256, False)
    assert ClipConfig(ratio=0.5).budget(2, 9, has_cls=False).patches == 9


def test_a_share_of_less_than_one_token_is_one() -> None:
    """Of any clip something stays, and a share of one patch is that patch."""
    for frames, patches in ((1, 1), (1, 3), (3, 1)):
        assert ClipConfig(ratio=0.01).budget(frames, patches, has_cls=True).patches == 1


def test_the_kind_of_a_token_tells_whether_it_stands_for_more_than_one_patch() -> None:
    """One patch, two, two halves, and none at all: only two patches are more than one."""
    holder = torch.tensor([[0, -1], [1, -1], [1, -1], [2, 3], [2, 3], [-1, -1]])
    found = ClipTokens.by_size(torch.zeros(5, 2), torch.arange(5), holder, ENRICHED)
    assert found.size.tolist() == [1, 2, 1, 1, 0]
    assert found.kind.tolist() == [KEPT, ENRICHED, KEPT, KEPT, KEPT]


@pytest.mark.parametrize("wrong", [{"keep": 0}, {"ratio": 0.0}, {"ratio": 1.1}, {"keep": 3, "ratio": 0.5}])
def test_a_budget_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    """Before any clip is read."""
    with pytest.raises(BudgetError):
        ClipConfig(**wrong)


@given(seed=st.integers(0, 999), share=st.floats(0.05, 0.95))
def test_a_calibrated_threshold_leaves_the_share_of_pairs_above_it(seed: int, share: float) -> None:
    """Over all clips together, to the pair."""
    clips = [clip_of(seed, 3).x, clip_of(seed + 1, 5).x]
    tau = calibrated_tau(clips, share)
    pairs = torch.cat([adjacent_likeness(x).flatten() for x in clips])
    assert abs(int((pairs > tau).sum()) - share * len(pairs)) <= 1


def test_a_quantile_threshold_must_have_been_calibrated() -> None:
    """tau is part of the config, so that it reaches the fingerprint."""
    with pytest.raises(ReducerError, match="calibrated_tau"):
        HoliTomConfig(tau_mode="quantile")
    assert HoliTomConfig(tau_mode="quantile", tau=0.93).tau == 0.93
    assert HoliTomConfig().tau == 0.8
