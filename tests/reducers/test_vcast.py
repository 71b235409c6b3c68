"""V-CAST's allocator: exact for any budget, more where the clip turns."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reducers.base import BudgetError
from reducers.methods.vcast import VCast, VCastConfig, curvature, frame_budgets
from tests.reducers.test_fit import clip_of, related


@given(seed=st.integers(0, 9999), frames=st.integers(1, 9), total=st.integers(0, 90), least=st.integers(0, 4))
def test_budgets_sum_to_what_was_asked_for(seed: int, frames: int, total: int, least: int) -> None:
    """Whatever the clip: no frame above its patches, none below the least that all can have."""
    turn = curvature(clip_of(seed, frames).x)
    budgets = frame_budgets(turn, total, 9, VCastConfig(least=least))
    assert int(budgets.sum()) == min(total, 9 * frames)
    assert int(budgets.max()) <= 9
    assert int(budgets.min()) >= min(least, total // frames, 9)


def test_a_frame_where_the_clip_turns_back_gets_more_than_one_on_the_way() -> None:
    """Straight on: curvature 0. Back: 2. Ends: 1."""
    way = torch.tensor([0.0, 0.2, 0.4, 0.2, 0.0])
    x = torch.stack([way.cos(), way.sin()], dim=1)[:, None].expand(-1, 4, -1)
    turn = curvature(x)
    torch.testing.assert_close(turn, torch.tensor([1.0, 0.0, 2.0, 0.0, 1.0]), atol=0.05, rtol=0)
    budgets = frame_budgets(turn, 100, 64, VCastConfig())
    assert budgets.argmax() == 2
    assert budgets[1] == budgets[3] < budgets[0]


def test_each_frame_keeps_its_best_attended() -> None:
    """As many as its budget says."""
    batch = related(3, (4,))
    reduced = VCast(VCastConfig(keep=20, keep_cls=False)).reduce(batch)
    scores = batch.capture(next(iter(VCast(VCastConfig()).needs)))
    for frame in range(4):
        kept = reduced.anchor[reduced.frame == frame] % 16
        assert set(kept.tolist()) == set(scores[frame].argsort(descending=True)[: len(kept)].tolist())


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"least": -1}])
def test_a_config_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    """Before any clip is read."""
    with pytest.raises(BudgetError):
        VCastConfig(**wrong)
