"""Both sampling policies against the NumPy expressions that other systems use."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.decode.sampling import frame_indices
from pipeline.errors import ConfigError


@given(st.integers(1, 5000), st.integers(1, 64))
def test_linspace_is_what_the_original_evaluation_samples(total: int, frames: int) -> None:
    """Integer arithmetic equals `np.linspace(...).astype(int)` wherever NumPy itself does not round below."""
    exact = [place * (total - 1) // max(frames - 1, 1) for place in range(frames)]
    floats = np.linspace(0, total - 1, frames)
    near = np.abs(floats - floats.round()) < 1e-9
    ours = np.array(frame_indices(total, frames, "linspace"))
    assert ours.tolist() == exact
    assert (ours[~near] == floats[~near].astype(int)).all()


@pytest.mark.parametrize("total", [1, 7, 8, 9, 300, 3001])
def test_eight_frames_equal_the_two_published_expressions(total: int) -> None:
    """Eight frames, as the model takes them, are equal without exception."""
    assert frame_indices(total, 8, "linspace") == np.linspace(0, total - 1, 8, dtype=int).tolist()
    assert frame_indices(total, 8, "arange") == np.arange(0, total, total / 8).astype(int).tolist()


def test_known_values_for_a_video_of_300_frames() -> None:
    """Linspace ends with the last frame, arange does not."""
    assert frame_indices(300, 8, "linspace") == [0, 42, 85, 128, 170, 213, 256, 299]
    assert frame_indices(300, 8, "arange") == [0, 37, 75, 112, 150, 187, 225, 262]


@pytest.mark.parametrize(("total", "frames", "policy"), [(0, 8, "linspace"), (5, 0, "arange"), (5, 8, "random")])
def test_what_cannot_be_sampled_is_refused(total: int, frames: int, policy: str) -> None:
    """No frames or an unknown policy are settings to mend."""
    with pytest.raises(ConfigError):
        frame_indices(total, frames, policy)  # type: ignore[arg-type]
