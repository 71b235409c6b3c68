"""EVS: nested, exact, blind to nothing that changed."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reducers.methods.evs import Evs, EvsConfig, changed
from tests.reducers.test_fit import clip_of, related


def kept_by_hand(x: torch.Tensor, a: torch.Tensor, keep: int) -> list[int]:
    """Section 5.1 as a loop over patches."""
    frames, patches, _ = x.shape
    change = []
    for frame in range(frames):
        for patch in range(patches):
            if frame:
                change.append(1 - float(torch.cosine_similarity(x[frame, patch], x[frame - 1, patch], dim=0)))
            else:
                rank = 1 + sum(float(a[0, other]) < float(a[0, patch]) for other in range(patches))
                change.append(2 * rank / patches if keep < patches else float("inf"))
    return sorted(sorted(range(len(change)), key=lambda token: (-change[token], token))[:keep])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("keep", [1, 4, 8, 9, 20])
def test_the_patches_that_changed_most_are_kept(seed: int, keep: int) -> None:
    """As a loop finds them, below a frame's worth and above."""
    clip = clip_of(seed, 4)
    assert changed(clip.x, clip.a, keep).tolist() == kept_by_hand(clip.x, clip.a, keep)


@given(seed=st.integers(0, 9999), less=st.integers(1, 36), more=st.integers(1, 36))
def test_what_is_kept_of_less_is_kept_of_more(seed: int, less: int, more: int) -> None:
    """On either side of one frame's worth."""
    clip = clip_of(seed, 4)
    less, more = sorted((less, more))
    if (less < 9) == (more < 9):
        assert set(changed(clip.x, clip.a, less).tolist()) <= set(changed(clip.x, clip.a, more).tolist())


def test_of_a_still_clip_the_first_frame_is_kept() -> None:
    """Whole where it fits, its best attended patches where not."""
    reduced = Evs(EvsConfig(keep=16, keep_cls=False)).reduce(related(2, (4,), "exact"))
    assert reduced.anchor.tolist() == list(range(16))
    assert reduced.size.tolist() == [1.0] * 16
    batch = related(2, (4,), "exact")
    few = Evs(EvsConfig(keep=3, keep_cls=False)).reduce(batch)
    best = batch.capture(next(iter(Evs(EvsConfig()).needs)))[0].argsort(descending=True)[:3]
    assert few.anchor.tolist() == sorted(best.tolist())


def test_published_floor_needs_compat() -> None:
    """A frame's worth at least, and only then."""
    batch = related(2, (4,))
    config = EvsConfig(keep=5, keep_cls=False, exact=False)
    kept = [Evs(replace(config, compat=compat)).reduce(batch) for compat in (False, True)]
    assert [len(one.anchor) for one in kept] == [5, 16]
