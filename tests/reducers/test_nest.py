"""`nest`: the order is greedy's, prefixes nest, folding in steps is folding at once, to the bit."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reducers.base import BudgetError, ReducerError, VisualTokens
from reducers.nest.order import NestConfig, Superset, build, directions, evidence, kernel
from reducers.nest.reducer import Nest, ask, budget_for, common_gain, fold, tail_of
from reducers.ops.clip_budget import Clip, clips_of
from tests.reducers.test_fit import COPIES, LENGTHS, related
from tests.reducers.test_invariants import tokens

CONFIG = NestConfig(superset=24, gate=0.3)
WORLDS = given(seed=st.integers(0, 9999), lengths=LENGTHS, copies=COPIES)


def clip_of(seed: int, frames: int, copies: str = "noisy") -> Clip:
    return clips_of(related(seed, (frames,), copies))[0]


def order_by_hand(clip: Clip, config: NestConfig) -> tuple[list[int], list[float]]:
    """Section 7.1, 5 and 6: look at every token for every rank."""
    kernel, mass, _ = (part.double() for part in evidence(clip, config))
    frames, patches = clip.a.shape
    best, order, gains = torch.zeros_like(mass), [], []
    while len(order) < min(config.superset, frames * patches):
        rank, options = len(order), [token for token in range(frames * patches) if token not in order]
        if rank < config.spread * frames:
            taken = [token // patches for token in order]
            options = [token for token in options if taken.count(token // patches) < rank // frames + 1]
        gain = {token: float((mass * (kernel[token] - best).clamp(min=0)).sum()) for token in options}
        order.append(max(options, key=lambda token: (gain[token], -token)))
        gains.append(gain[order[-1]] / float(mass.sum()))
        best = best.maximum(kernel[order[-1]])
    return order, gains


@pytest.mark.parametrize("copies", ["none", "noisy", "exact", "constant"])
def test_kernel_and_mass_are_those_of_a_loop(copies: str) -> None:
    """Section 7.1, 1 to 4, token by token."""
    clip = clip_of(3, 3, copies)
    x = clip.x.flatten(0, 1).double()
    apart = x - x.mean(0)
    unit = [d / d.norm() if d.norm() > 1e-6 * row.norm() else 0 * d for d, row in zip(apart, x, strict=True)]
    kernel, mass, _ = evidence(clip, NestConfig(gamma=3.0))
    for i in range(48):
        change = 1.0 if i < 16 else 1 - min(1.0, max(0.0, float(unit[i] @ unit[i - 16])))
        attended = 0.3 + 0.7 * min(16 * float(clip.a.flatten()[i]), 3.0)
        assert float(mass[i]) == pytest.approx(attended * (0.2 + 0.8 * change), abs=2e-5)
        for j in range(48):
            like = max(0.0, float(unit[i] @ unit[j])) ** 3 * math.exp(-abs(i // 16 - j // 16) / 0.75)
            assert float(kernel[i, j]) == pytest.approx(1.0 if i == j else like, abs=2e-5)


@settings(max_examples=25)
@given(seed=st.integers(0, 9999), frames=st.integers(1, 5), copies=COPIES, spread=st.integers(0, 3))
def test_the_order_is_that_of_greedy_over_all_tokens(seed: int, frames: int, copies: str, spread: int) -> None:
    """The same tokens with the same gains, ties included, though most gains are never looked at."""
    clip, config = clip_of(seed, frames, copies), replace(CONFIG, spread=spread)
    found = build([clip], config)[0]
    order, gains = order_by_hand(clip, config)
    assert found.id.tolist() == order
    torch.testing.assert_close(found.gain, torch.tensor(gains))


@WORLDS
def test_clips_of_any_sizes_are_ordered_together_as_alone(seed: int, lengths: tuple[int, ...], copies: str) -> None:
    """Every field of the superset, to the bit."""
    clips = clips_of(related(seed, lengths, copies))
    for one, clip in zip(build(clips, CONFIG), clips, strict=True):
        alone = build([clip], CONFIG)[0]
        assert all(torch.equal(getattr(one, name), getattr(alone, name)) for name in vars(one) if name != "frames")


@WORLDS
def test_folding_in_two_steps_is_folding_at_once(seed: int, lengths: tuple[int, ...], copies: str) -> None:
    """Bit by bit for all pairs of budgets; ids of less are ids of more; none is new."""
    for given_ in build(clips_of(related(seed, lengths, copies)), CONFIG):
        for less, more in ((1, 2), (2, 7), (5, 11), (7, 23), (12, 24)):
            step, once = fold(fold(given_, more, 0.25), less, 0.25), fold(given_, less, 0.25)
            for name in ("features", "id", "parent", "link", "weight", "gain", "holder"):
                assert torch.equal(getattr(step, name), getattr(once, name)), name
            assert set(once.id.tolist()) <= set(fold(given_, more, 0.25).id.tolist()) <= set(given_.id.tolist())
            assert len(once.id) == min(less, len(given_.id))
            assert once.features.isfinite().all()


@WORLDS
def test_every_prefix_of_a_frame_each_shows_every_frame(seed: int, lengths: tuple[int, ...], copies: str) -> None:
    """And gains never rise once frames no longer take turns."""
    for given_, frames in zip(build(clips_of(related(seed, lengths, copies)), CONFIG), lengths, strict=True):
        assert set((given_.id[:frames] // 16).tolist()) == set(range(frames))
        assert set(torch.bincount(given_.id[: 2 * frames] // 16).tolist()) == {min(2, 16)}
        assert (given_.gain[2 * frames :].diff() <= 0).all()
        assert 0 <= float(given_.gain.min()) <= float(given_.gain.double().sum()) <= 1 + 1e-6


@pytest.mark.parametrize("seed", range(6))
def test_parents_and_what_is_absorbed_are_those_of_a_loop(seed: int) -> None:
    """docs/methods/video.md section 7.1, points 7 and 8, and section 7.2, token by token."""
    clip = clip_of(seed, 3)
    found = build([clip], CONFIG)[0]
    kernel, _, unit = evidence(clip, CONFIG)
    order, x = found.id.tolist(), clip.x.flatten(0, 1)
    taken: dict[int, list[int]] = {rank: [] for rank in range(len(order))}
    for token in sorted(set(range(48)) - set(order)):
        rank = max(range(len(order)), key=lambda t: (float(kernel[order[t], token]), -t))
        if float(unit[order[rank]] @ unit[token]) >= CONFIG.gate:
            taken[rank].append(token)
    y, w = [], []
    for rank, token in enumerate(order):
        w.append(1 + CONFIG.omega * len(taken[rank]))
        y.append((x[token] + CONFIG.omega * sum(x[other] for other in taken[rank])) / w[-1])
        if rank:
            parent = max(range(rank), key=lambda q: (float(kernel[order[q], token]), -q))
            assert int(found.parent[rank]) == parent
            assert bool(found.link[rank]) == (float(unit[order[parent]] @ unit[token]) >= CONFIG.gate)
    torch.testing.assert_close(found.features, torch.stack(y), atol=1e-5, rtol=1e-5)
    assert any(taken.values())
    assert found.link.any()
    for rank in range(len(order) - 1, 8, -1):
        if found.link[rank]:
            parent = int(found.parent[rank])
            y[parent] = (w[parent] * y[parent] + 0.25 * w[rank] * y[rank]) / (w[parent] + 0.25 * w[rank])
            w[parent] += 0.25 * w[rank]
    folded = fold(found, 9, 0.25)
    torch.testing.assert_close(folded.features, torch.stack(y[:9]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(folded.weight, torch.tensor(w[:9]))


def test_a_clip_smaller_than_the_superset_is_ranked_whole() -> None:
    """S = M: nothing is absorbed, folding to all of it gives the patches back."""
    clip = clip_of(1, 1)
    found = build([clip], NestConfig())[0]
    assert sorted(found.id.tolist()) == list(range(16))
    assert torch.equal(found.features[found.id.argsort()], clip.x[0])


def test_reducing_is_folding_what_is_stored() -> None:
    """`keep` changes nothing else."""
    batch = related(4, (3, 2))
    stored = Nest(replace(CONFIG, keep_cls=False)).supersets(batch)
    reduced = Nest(replace(CONFIG, keep_cls=False, keep=6)).reduce(batch)
    for number, one in enumerate(stored):
        folded = fold(one, 6, CONFIG.omega)
        assert torch.equal(reduced.features[reduced.clip(number)], folded.features[folded.id.argsort()])


def stored_one(seed: int) -> tuple[Superset, VisualTokens]:
    batch = tokens(seed, (4,))
    return Nest(CONFIG).supersets(batch)[0], batch


@given(seed=st.integers(0, 9999), budget=st.integers(1, 30), prefer=st.sampled_from(["like", "unlike"]))
def test_a_question_chooses_within_the_superset(seed: int, budget: int, prefer: str) -> None:
    """As many as asked for, the first half of the prefix among them, each patch counted at most once."""
    given_, _ = stored_one(seed)
    relevance = torch.randn(len(given_.id), generator=torch.Generator().manual_seed(seed))
    found = ask(given_, relevance, budget, CONFIG, prefer)
    kept = min(budget, len(given_.id))
    assert len(found.anchor) == kept
    assert set(given_.id[: (kept + 1) // 2].tolist()) <= set(found.anchor.tolist()) <= set(given_.id.tolist())
    assert (found.anchor.diff() > 0).all()
    assert (found.size > 0).all()
    assert float(found.size.sum()) <= len(given_.holder)


def asked_by_hand(
    given_: Superset, relevance: torch.Tensor, budget: int, sign: int
) -> tuple[dict[int, torch.Tensor], dict[int, int]]:
    """Section 7.3 rank by rank: features of what is left and how many patches each holds, by anchor."""
    ranks, held = range(len(given_.id)), given_.holder.tolist()
    z = (relevance - relevance.mean()).double()
    z = z / z.square().mean().sqrt()
    mass = [round(math.exp(sign * min(3.0, max(-2.0, float(one)))) * 2**16) / 2**16 for one in z]
    size = torch.tensor([float(held.count(rank)) for rank in ranks])[:, None]
    unit = directions(given_.features, (size * given_.features).sum(0) / size.sum())
    like = kernel(unit, given_.id // (len(held) // given_.frames), given_.frames, CONFIG).tolist()
    kept = list(range((budget + 1) // 2))
    while len(kept) < budget:
        best = [max(like[one][at] for one in kept) for at in ranks]
        gain = {one: sum(m * max(0.0, k - b) for m, k, b in zip(mass, like[one], best, strict=True)) for one in ranks}
        kept.append(max((one for one in ranks if one not in kept), key=lambda one: (gain[one], -one)))
    y, w, goes = [*given_.features], given_.weight.tolist(), {one: one for one in kept}
    for rank in sorted(set(ranks) - set(kept), reverse=True):
        parent = int(given_.parent[rank])
        into = parent if parent in kept else max(sorted(kept), key=lambda one: (like[rank][one], -one))
        if bool(given_.link[rank]) if parent in kept else float(unit[rank] @ unit[into]) >= CONFIG.gate:
            y[into] = (w[into] * y[into] + CONFIG.omega * w[rank] * y[rank]) / (w[into] + CONFIG.omega * w[rank])
            w[into] += CONFIG.omega * w[rank]
            goes[rank] = into
    anchors = given_.id.tolist()
    counts = {anchors[one]: sum(goes.get(rank) == one for rank in held) for one in kept}
    return {anchors[one]: y[one] for one in kept}, counts


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("prefer", "sign"), [("like", 1), ("unlike", -1)])
def test_a_question_chooses_and_folds_as_a_loop_over_ranks(seed: int, prefer: str, sign: int) -> None:
    """With one rank far more relevant than the others, so that relevance is cut off at both ends."""
    given_ = Nest(CONFIG).supersets(related(seed, (4,)))[0]
    relevance = torch.randn(len(given_.id), generator=torch.Generator().manual_seed(seed))
    relevance[15], relevance[18] = 40.0, -40.0
    for budget in (1, 5, 8):
        found = ask(given_, relevance, budget, CONFIG, prefer)
        features, counts = asked_by_hand(given_, relevance, budget, sign)
        assert found.anchor.tolist() == sorted(features)
        torch.testing.assert_close(found.features, torch.stack([features[at] for at in sorted(features)]), atol=1e-5, rtol=1e-4)
        assert found.size.tolist() == [counts[at] for at in sorted(counts)]


def test_a_budget_of_nothing_is_one_rank() -> None:
    """A clip is never empty; all ranks where more are asked for."""
    given_, _ = stored_one(3)
    assert torch.equal(fold(given_, 0, 0.25).id, given_.id[:1])
    assert torch.equal(fold(given_, 0, 0.25).features, fold(given_, 1, 0.25).features)
    assert torch.equal(fold(given_, 999, 0.25).features, given_.features)


def test_what_is_dropped_is_held_by_nobody() -> None:
    """Nor is what it had taken in; what is linked goes where its parent went."""
    given_, _ = stored_one(5)
    link = given_.link.clone()
    link[12:18] = False
    folded = fold(replace(given_, link=link), 8, 0.25)

    def goes(rank: int) -> int:
        return rank if rank < 8 else goes(int(given_.parent[rank])) if rank >= 0 and link[rank] else -1

    assert folded.holder.tolist() == [goes(rank) if rank >= 0 else -1 for rank in given_.holder.tolist()]
    assert -1 in folded.holder.tolist()


def test_later_gains_count_at_most_as_much_as_those_before_them() -> None:
    """Turns of frames leave gains that rise again: a cut must not have holes."""
    gain = torch.tensor([0.5, 0.1, 0.3, 0.2, 0.05, 0.15])
    assert tail_of(gain, 1).tolist() == pytest.approx([0.1, 0.1, 0.1, 0.05, 0.05])
    assert tail_of(gain, 6).tolist() == []


def test_a_question_brings_in_what_it_is_about() -> None:
    """A late rank that alone is like the question is kept, and left out where unlike ones are preferred."""
    given_, _ = stored_one(7)
    relevance = torch.zeros(len(given_.id))
    relevance[20] = 1
    token = int(given_.id[20])
    assert token in ask(given_, relevance, 6, CONFIG).anchor.tolist()
    assert token not in ask(given_, relevance, 6, CONFIG, "unlike").anchor.tolist()
    assert token not in fold(given_, 6, 0.25).id.tolist()


def test_coverage_sets_the_budget_of_a_clip() -> None:
    """The shortest prefix that explains enough, at most all."""
    gain = torch.tensor([0.5, 0.25, 0.125, 0.0625])
    assert [budget_for(gain, share) for share in (0.1, 0.5, 0.6, 0.75, 0.9, 0.99)] == [1, 1, 2, 2, 4, 4]


def test_a_corpus_budget_cuts_all_clips_at_one_gain() -> None:
    """Never more than was asked for; equal gains stay together; each clip gets its least, one with little to say no more."""
    gains = [torch.tensor([0.5, 0.2, 0.1, 0.05]), torch.tensor([0.9, 0.01, 0.01]), torch.tensor([0.3])]

    def kept(total: int, least: int) -> list[int]:
        cut = common_gain(gains, total, least)
        return [min(len(gain), least) + int((tail_of(gain, least) >= cut).sum()) for gain in gains]

    assert kept(5, 1) == [3, 1, 1]
    assert kept(6, 1) == [4, 1, 1]
    assert kept(7, 1) == [4, 1, 1]
    assert kept(100, 1) == [4, 3, 1]
    assert kept(5, 2) == [2, 2, 1]
    with pytest.raises(BudgetError, match="at least 5"):
        common_gain(gains, 4, least=2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"superset": 0}, {"superset": 2**15 + 1}, {"keep": 0}, {"keep": 600}, {"gate": 0.0}, {"omega": math.nan},
        {"gamma": 0.0}, {"memory": 0.0},
    ],
)  # fmt: skip
def test_a_config_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    """Before any clip is read."""
    with pytest.raises(ReducerError):
        NestConfig(**wrong)
