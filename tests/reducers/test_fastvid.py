"""FastVID: density peaks without noise, contexts that hold whole segments, clamps where the published code fails."""

import pytest
import torch

from reducers.base import CONTEXTUAL, BudgetError
from reducers.methods.fastvid import FastVidConfig, anchor_frames, fastvid
from reducers.ops.clip_budget import Budget, Clip, clips_of
from reducers.ops.density import density_peaks, distances
from reducers.ops.segments import segment_of
from tests.reducers.test_fit import clip_of, related


def test_equal_points_are_at_no_distance_and_far_ones_are_exact() -> None:
    """At the width and the length of real features, where float32 Gram matrices are 0.05 off."""
    x = 30 + torch.randn(2, 5, 1024, generator=torch.Generator().manual_seed(1))
    x[:, 3] = x[:, 0]
    gap = distances(x)
    expected = (x.double()[:, :, None] - x.double()[:, None]).square().mean(-1).sqrt()
    torch.testing.assert_close(gap, expected, atol=1e-9, rtol=1e-6)
    assert (gap[:, 0, 3] == 0).all()
    assert torch.equal(gap[:, 0], gap[:, 3])


@pytest.mark.parametrize("seed", range(5))
def test_rows_of_different_lengths_have_the_centres_that_they_have_alone(seed: int) -> None:
    """What is not valid changes nothing."""
    x = clip_of(seed, 3).x
    valid = torch.arange(9) < torch.tensor([[9], [5], [1]])
    score = density_peaks(distances(x), valid, torch.tensor([4, 4, 1]))
    for row, points in enumerate((9, 5, 1)):
        alone = x[row : row + 1, :points]
        expected = density_peaks(distances(alone), valid[row : row + 1, :points], torch.tensor([min(4, points)]))
        torch.testing.assert_close(score[row, :points], expected[0])
        assert (score[row, points:] == -torch.inf).all()


def test_ties_of_density_go_to_the_lower_index() -> None:
    """All points alike: no noise decides."""
    score = density_peaks(distances(torch.ones(1, 6, 4)), torch.ones(1, 6, dtype=torch.bool), torch.tensor([4]))
    assert (score == score[0, 0]).all()


def test_segments_are_cut_where_frames_differ_most() -> None:
    """At least as many as asked for while there are frames (A7), and wherever frames differ much."""
    like = torch.tensor([0.99, 0.5, 0.97, 0.95])
    assert segment_of(like, 1, 0.9).tolist() == [0, 0, 1, 1, 1]
    assert segment_of(like, 3, 0.9).tolist() == [0, 0, 1, 1, 2]
    assert segment_of(like, 9, 0.9).tolist() == [0, 1, 2, 3, 4]
    assert segment_of(like[:0], 2, 0.9).tolist() == [0]


def test_anchor_frames_count_back_from_the_end_of_a_segment() -> None:
    """Every second one here."""
    host, length, anchors = anchor_frames(torch.tensor([0, 0, 0, 1, 2, 2]), 2)
    assert host.tolist() == [True, False, True, True, False, True]
    assert length.tolist() == [3, 3, 3, 1, 2, 2]
    assert anchors.tolist() == [2, 2, 2, 1, 1, 1]


def by_hand(clip: Clip, segments: list[list[int]], tokens: int, contexts: int) -> dict[int, tuple[torch.Tensor, float]]:
    """Section 5.3, 3 to 6, with stride 2 and beta 0.6: values and sizes by anchor."""
    patches, out = clip.a.shape[1], {}
    order = [sorted(range(patches), key=lambda n, f=f: (-float(clip.a[f, n]), n)) for f in range(4)]
    salient = [one[: tokens - contexts] for one in order]
    out.update({f * patches + n: (clip.x[f, n], 1.0) for f in range(4) for n in salient[f]})
    for segment in segments:
        hosts = segment[::-1][::2]
        free = [(f, n) for f in segment for n in range(patches) if n not in salient[f]]
        for host in hosts:
            rows = {n: clip.x[host, n] for f, n in free if f == host}
            centres = list(peaks_by_hand(rows, contexts * len(segment) // len(hosts)))
            every = torch.stack([clip.x[place] for place in free])
            like = {c: torch.cosine_similarity(clip.x[host, c], every, dim=-1) for c in centres}
            for c in centres:
                best = [max(sorted(centres), key=lambda k, at=at: float(like[k][at])) for at in range(len(free))]
                mine = [place for place, context in zip(free, best, strict=True) if context == c]
                mean, own = torch.stack([clip.x[p] for p in mine]).mean(0), max(0.6, 1 / (len(mine) + 1))
                out[host * patches + c] = (own * clip.x[host, c] + (1 - own) * mean, len(mine) / len(hosts))
    return {anchor: out[anchor] for anchor in sorted(out)}


def peaks_by_hand(rows: dict[int, torch.Tensor], centres: int) -> list[int]:
    """Density from four neighbours."""
    names, width = sorted(rows), len(next(iter(rows.values())))
    gap = {(i, j): float((rows[i].double() - rows[j].double()).norm()) / width**0.5 for i in names for j in names}
    density = {i: -sum(sorted(gap[i, j] ** 2 for j in names)[:4]) / min(4, len(names)) for i in names}
    apart = {i: min([gap[i, j] for j in names if density[j] > density[i]], default=max(gap.values())) for i in names}
    weight = {i: float(torch.tensor(density[i], dtype=torch.float64).exp()) * apart[i] for i in names}
    return sorted(names, key=lambda i: (-weight[i], i))[:centres]


@pytest.mark.parametrize("seed", range(8))
def test_tokens_are_those_of_a_loop(seed: int) -> None:
    """Values, and sizes that split a patch evenly over the anchor frames of its segment."""
    clip = clips_of(related(seed, (4,), "noisy"))[0]
    g = clip.g.clone()
    g[:3], g[3] = g[0], -g[0]
    clip = Clip(x=clip.x, a=clip.a, g=g, metric=clip.x)
    config = FastVidConfig(stride=2, segments=1, context_share=0.5)
    found = fastvid(clip, Budget(patches=24, ratio=0.375, cls=False), config)
    expected = by_hand(clip, [[0, 1, 2], [3]], 6, 3)
    assert found.anchor.tolist() == list(expected)
    values = torch.stack([value for value, _ in expected.values()])
    torch.testing.assert_close(found.features, values, atol=1e-5, rtol=1e-5)
    assert found.size.tolist() == pytest.approx([size for _, size in expected.values()])


def test_more_contexts_than_free_patches_are_clamped() -> None:
    """Where the published code fails (A7)."""
    clip = clip_of(1, 4)
    config = FastVidConfig(context_share=1.0, segments=1, tau=-1.0)
    found = fastvid(clip, Budget(patches=30, ratio=0.84, cls=False), config)
    assert found.anchor.tolist() == list(range(27, 36))
    assert (found.kind == CONTEXTUAL).all()
    assert float(found.size.sum()) == pytest.approx(36)


@pytest.mark.parametrize("wrong", [{"context_share": 1.1}, {"beta": -0.1}, {"stride": 0}, {"segments": 0}])
def test_a_config_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    """Before any clip is read."""
    with pytest.raises(BudgetError):
        FastVidConfig(**wrong)
