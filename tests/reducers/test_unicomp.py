"""UniComp: groups of like frames, unique patches, budgets shared to the last token."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reducers.base import KEPT, BudgetError, ReducerError
from reducers.methods.unicomp import (
    UniComp,
    UniCompConfig,
    frame_groups,
    group_budgets,
    pass_surplus,
    unicomp,
    unique_picks,
)
from reducers.ops.clip_budget import Budget, clips_of
from tests.reducers.test_fit import clip_of, related


@given(seed=st.integers(0, 9999), patches=st.integers(1, 30), radius=st.floats(0, 1.5))
def test_picks_are_those_of_a_walk_by_rank(seed: int, patches: int, radius: float) -> None:
    """Each picked patch suppresses all that are close, though all are settled at once."""
    draw = torch.Generator().manual_seed(seed)
    place = torch.rand(2, patches, 2, generator=draw)
    close = (place[:, :, None] - place[:, None]).norm(dim=-1) < radius
    rank = torch.stack([torch.randperm(patches, generator=draw) for _ in range(2)])
    found = unique_picks(close | torch.eye(patches, dtype=torch.bool), rank)
    for group in range(2):
        suppressed, picked = set(), []
        for patch in rank[group].argsort().tolist():
            if patch not in suppressed:
                picked.append(patch)
                suppressed |= set(close[group, patch].nonzero()[:, 0].tolist())
        assert found[group].nonzero()[:, 0].tolist() == sorted(picked)


@given(seed=st.integers(0, 9999), groups=st.integers(1, 8), total=st.integers(0, 80))
def test_budgets_and_surplus_lose_no_token(seed: int, groups: int, total: int) -> None:
    """As many as the caps hold, then as many as there are picks."""
    draw = torch.Generator().manual_seed(seed)
    budgets = group_budgets(torch.randn(groups, 5, generator=draw), total, 9)
    cap = min(9, max(1, 2 * (total // groups)))
    assert int(budgets.sum()) == min(total, cap * groups)
    assert int(budgets.max()) <= cap
    picks = torch.randint(0, 10, (groups,), generator=draw)
    passed = pass_surplus(budgets, picks)
    assert (passed <= picks).all()
    assert int(passed.sum()) == min(int(budgets.sum()), int(picks.sum()))
    assert (passed >= torch.minimum(budgets, picks)).all()
    more = (passed - budgets)[passed < picks]  # those with room left got evenly much
    assert len(more) == 0 or int(more.max() - more.min()) <= 1


def test_surplus_is_passed_on_one_by_one() -> None:
    """Lower groups first, none above its picks; published arithmetic floors."""
    budgets, picks = torch.tensor([5, 2, 2, 2]), torch.tensor([0, 3, 9, 9])
    assert pass_surplus(budgets, picks).tolist() == [0, 3, 4, 4]
    assert pass_surplus(budgets, picks, compat=True).tolist() == [0, 3, 3, 3]


def test_a_group_ends_at_a_cut_or_at_its_longest() -> None:
    """Frames are compared with the first of the group, not with the one before."""
    turn = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.3, 2.0])
    x = torch.stack([turn.cos(), turn.sin()], dim=1)[:, None].expand(-1, 3, -1)
    assert frame_groups(x, 1 - float(torch.tensor(0.25).cos()), 9) == [0, 3, 5]
    assert frame_groups(x, 1 - float(torch.tensor(0.25).cos()), 2) == [0, 2, 4, 5]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("ratio", [0.2, 0.4])
def test_tokens_are_those_of_a_loop(seed: int, ratio: float) -> None:
    """Values, sizes and which pick holds which patch, group by group."""
    clip = clips_of(related(seed, (4,), "noisy"))[0]
    config = UniCompConfig(frame_uniqueness=0.2, spatial_uniqueness=0.7)
    budget = Budget(patches=int(64 * ratio), ratio=ratio, cls=False)
    found = unicomp(clip, budget, config)
    first = [*frame_groups(clip.x, 0.2, int(1 / ratio) + 1), 4]
    values, groups, near, order = [], [], [], []
    for start, end in pairwise(first):
        groups.append(clip.x[start:end].mean(0))
        like = torch.cosine_similarity(groups[-1][:, None], groups[-1], dim=-1)
        near.append([[j for j in range(16) if j == i or 1 - float(like[i, j]) < 0.7] for i in range(16)])
        order.append(sorted(range(16), key=lambda i: float(like[i].mean())))
    picks = []
    for visits, close in zip(order, near, strict=True):
        picks.append([])
        for i in visits:
            if not any(i in close[j] for j in picks[-1]):
                picks[-1].append(i)
    share = group_budgets(clip.g[first[:-1]], budget.patches, 16)
    share = pass_surplus(share, torch.tensor([len(one) for one in picks]))
    for number, start in enumerate(first[:-1]):
        kept = picks[number][: int(share[number])]
        for i in sorted(kept):
            around = groups[number][near[number][i]].mean(0)
            holds = [j for j in range(16) if next((k for k in kept if j in near[number][k]), None) == i]
            values.append((start * 16 + i, (groups[number][i] + around) / 2, len(holds) * (first[number + 1] - start)))
    assert found.anchor.tolist() == [anchor for anchor, _, _ in values]
    assert found.size.tolist() == [size for _, _, size in values]
    torch.testing.assert_close(found.features, torch.stack([value for _, value, _ in values]), atol=1e-5, rtol=1e-5)
    assert ((found.kind != KEPT) | (found.size == 1)).all()


def test_few_groups_are_kept_whole() -> None:
    """One averaged frame fits: all its patches stay, each for all four frames."""
    clip = clips_of(related(1, (4,), "exact"))[0]
    found = unicomp(clip, Budget(patches=16, ratio=0.25, cls=False), UniCompConfig())
    assert found.anchor.tolist() == list(range(16))
    assert found.size.tolist() == [4.0] * 16
    torch.testing.assert_close(found.features, clip.x[0])


def test_keys_are_asked_for_only_where_they_are_the_metric() -> None:
    """Attention is always needed: the budget is fitted by it."""
    plain, keys = (UniComp(UniCompConfig(metric=metric)) for metric in ("features", "keys"))
    assert keys.needs - plain.needs == {UniComp.keys}
    clip = clip_of(1, 2)
    assert clip.metric is clip.x


def test_a_config_that_cannot_be_is_refused() -> None:
    """Before any clip is read."""
    with pytest.raises(BudgetError):
        UniCompConfig(spatial_uniqueness=-0.1)
    with pytest.raises(ReducerError, match="compat"):
        UniCompConfig(channel_means=True)
