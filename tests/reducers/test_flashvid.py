"""FlashVID: spread selection, trees whose roots are means of what they hold, clusters of free roots only."""

import pytest
import torch

from reducers.base import BudgetError
from reducers.methods.flashvid import FlashVidConfig, cluster_counts, flashvid, spread_selection
from reducers.ops.clip_budget import Budget, Clip, clips_of
from reducers.ops.trees import links, trees
from tests.reducers.test_fit import clip_of, related


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [0, 1, 4, 9, 12])
def test_the_selection_is_that_of_a_loop(seed: int, count: int) -> None:
    """Section 5.5, 3: the patch whose nearest chosen one is farthest, the new one's attention being the unit."""
    clip = clip_of(seed, 2)
    mask = spread_selection(clip.x, clip.a, count)
    for frame in range(2):
        x, a = clip.x[frame], clip.a[frame].tolist()
        gap = [[(1 - float(torch.cosine_similarity(x[i], x[j], dim=0))) * a[j] for j in range(9)] for i in range(9)]
        picked = [max(range(9), key=lambda j: sorted(row[j] for row in gap)[1])][:count]
        while len(picked) < min(count, 9):
            free = [j for j in range(9) if j not in picked]
            picked.append(max(free, key=lambda j: min(gap[i][j] for i in picked)))
        assert mask[frame].nonzero()[:, 0].tolist() == sorted(picked)


def links_by_hand(x: torch.Tensor, free: torch.Tensor, segments: list[int], tokens: int, tau: float) -> list[int]:
    """Section 5.5, 4, patch by patch."""
    frames, patches, _ = x.shape
    best = {}
    for frame in range(1, frames):
        for n in range(patches):
            others = [m for m in range(patches) if free[frame - 1, m]]
            if free[frame, n] and segments[frame] == segments[frame - 1] and others:
                like = {m: float(torch.cosine_similarity(x[frame, n], x[frame - 1, m], dim=0)) for m in others}
                parent = max(like, key=lambda m: (like[m], -m))
                best[frame * patches + n] = (like[parent], (frame - 1) * patches + parent)
    parents = list(range(frames * patches))
    for segment in set(segments):
        mine = {t: best[t] for t in best if segments[t // patches] == segment}
        most = segments.count(segment) * (patches - tokens)
        linked = [t for t in mine if mine[t][0] > tau]
        if len(linked) > most:
            limit = sorted((value for value, _ in mine.values()), reverse=True)[most - 1] if most else 2.0
            linked = [t for t in mine if mine[t][0] > limit]
        for t in linked:
            parents[t] = mine[t][1]
    return parents


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("tokens", "tau"), [(3, 0.2), (3, 0.9), (7, -1.0), (9, 0.0)])
def test_links_are_those_of_a_loop(seed: int, tokens: int, tau: float) -> None:
    """Over a cut too, and where there would be too many."""
    x = clip_of(seed, 5).x
    x[1:3] += 2 * x[0]
    free = torch.rand(5, 9, generator=torch.Generator().manual_seed(seed)) > 0.3
    segments = [0, 0, 0, 1, 1]
    found = links(x, free, torch.tensor(segments), tokens, tau)
    assert found.tolist() == links_by_hand(x, free, segments, tokens, tau)


def test_a_tree_is_divided_by_its_size_and_in_compat_by_its_root_and_its_children() -> None:
    """A chain of four and a branch (A2)."""
    parent = torch.tensor([0, 0, 1, 2, 1, 5])
    x = torch.tensor([[1.0], [2.0], [4.0], [8.0], [15.0], [32.0]])
    root, mean = trees(x, parent, direct=False)
    assert root.tolist() == [0, 0, 0, 0, 0, 5]
    assert mean[[0, 5], 0].tolist() == [30 / 5, 32]
    assert trees(x, parent, direct=True)[1][[0, 5], 0].tolist() == [30 / 2, 32]


def test_clusters_are_shared_over_the_frames_of_a_segment() -> None:
    """By their roots, rounded up; all roots stay where they are few."""
    roots = torch.arange(8) < torch.tensor([[8], [2], [1], [3]])
    assert cluster_counts(roots, torch.tensor([0, 0, 1, 1]), 3).tolist() == [5, 2, 1, 3]


def static_clip() -> Clip:
    return clips_of(related(1, (4,), "exact"))[0]


def test_a_still_patch_becomes_one_token_with_its_own_value() -> None:
    """Norms do not grow along a chain; in compat they do."""
    budget, config = Budget(patches=32, ratio=0.5, cls=False), {"alpha": 0.5, "segments": 1}
    found = flashvid(static_clip(), budget, FlashVidConfig(**config))
    published = flashvid(static_clip(), budget, FlashVidConfig(compat=True, **config))
    alone = (found.holder[:, 0][:, None] == torch.arange(len(found.anchor))).view(4, 16, -1).any(0).sum(0) == 1
    assert (found.size[alone] > 1).any()
    torch.testing.assert_close(found.features[alone], static_clip().x.flatten(0, 1)[found.anchor][alone])
    assert published.features.norm(dim=1).max() > 1.5 * found.features.norm(dim=1).max()


@pytest.mark.parametrize("seed", range(5))
def test_one_frame_segments_cluster_free_patches_only(seed: int) -> None:
    """No anchor comes twice (A3)."""
    clip, budget = clip_of(seed, 4), Budget(patches=12, ratio=0.34, cls=False)
    found = flashvid(clip, budget, FlashVidConfig(segments=4))
    assert found.anchor.unique().numel() == len(found.anchor) == 16
    assert float(found.size.sum()) == 36


@pytest.mark.parametrize("wrong", [{"alpha": 1.1}, {"segments": 0}])
def test_a_config_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    """Before any clip is read."""
    with pytest.raises(BudgetError):
        FlashVidConfig(**wrong)
