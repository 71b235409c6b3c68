"""DyCoke's temporal merging, all windows alike."""

import pytest
import torch

from reducers.base import BudgetError
from reducers.methods.dycoke import DyCoke, DyCokeConfig, unlike_reference
from tests.reducers.test_fit import clip_of, related


@pytest.mark.parametrize("frames", range(1, 11))
@pytest.mark.parametrize("prune", [0.0, 0.5, 0.7, 1.0])
def test_frames_are_pruned_as_a_loop_prunes_them(frames: int, prune: float) -> None:
    """Section 5.2 for any number of frames: the first of four is whole, references are never pruned."""
    x = clip_of(frames, frames).x
    mask = unlike_reference(x, prune)
    for frame in range(frames):
        start = frame // 4 * 4
        if frame == start:
            assert mask[frame].all()
            continue
        reference = {1: start, 2: start, 3: start + 2}[frame - start]
        like = [float(torch.cosine_similarity(x[frame, n], x[reference, n], dim=0)) for n in range(9)]
        expected = sorted(range(9), key=lambda n: (like[n], n))[: int((1 - prune) * 9)]
        assert mask[frame].nonzero()[:, 0].tolist() == sorted(expected)


def test_published_windows_lose_an_odd_last_frame_and_spare_the_last_third_one() -> None:
    """Accident A1."""
    x = clip_of(1, 9).x
    ours, published = unlike_reference(x, 1.0), unlike_reference(x, 1.0, compat=True)
    assert ours.any(1).nonzero()[:, 0].tolist() == [0, 4, 8]
    assert published.any(1).nonzero()[:, 0].tolist() == [0, 4]
    even = unlike_reference(x[:8], 1.0, compat=True)
    assert even.any(1).nonzero()[:, 0].tolist() == [0, 4, 6]


def test_below_a_quarter_whole_frames_are_folded_to_the_budget() -> None:
    """Tokens then speak for more than one patch."""
    reduced = DyCoke(DyCokeConfig(ratio=0.125, keep_cls=False)).reduce(related(1, (8,)))
    assert len(reduced.anchor) == 16
    assert set(reduced.frame.tolist()) <= {0, 4}
    assert float(reduced.size.sum()) == 32


def test_a_share_that_cannot_be_pruned_is_refused() -> None:
    """Before any clip is read."""
    with pytest.raises(BudgetError):
        DyCokeConfig(prune=1.5)
