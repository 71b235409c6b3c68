"""Resize and crop against PIL's own bicubic, which follows the same definition with other rounding."""

import numpy as np
import pytest
from PIL import Image

from pipeline.decode.transforms import fit_square, resized


@pytest.mark.parametrize(("height", "width"), [(240, 320), (720, 1280), (321, 241), (64, 64), (50, 90)])
def test_a_frame_is_resized_and_cropped_as_pil_does(height: int, width: int) -> None:
    """The mean difference is below a third of a level, and the crop is the same one."""
    frame = _smooth(height, width)
    ours = fit_square(frame[None], 64)[0].astype(int)
    new_height, new_width = resized(height, width, 64)
    image = Image.fromarray(frame).resize((new_width, new_height), Image.Resampling.BICUBIC)
    top, left = int((new_height - 64) / 2), int((new_width - 64) / 2)
    theirs = np.asarray(image.crop((left, top, left + 64, top + 64))).astype(int)
    assert np.abs(ours - theirs).mean() < 0.34
    assert np.abs(ours - theirs).max() <= 8


def test_frames_do_not_depend_on_their_neighbours() -> None:
    """A clip is its frames one by one."""
    frames = np.stack([_smooth(90, 120, seed) for seed in range(3)])
    together = fit_square(frames, 32)
    assert (together == np.concatenate([fit_square(frames[i : i + 1], 32) for i in range(3)])).all()


def test_a_frame_of_the_right_size_is_left_alone() -> None:
    """Nothing is resampled where nothing needs to be."""
    frame = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    assert (fit_square(frame, 32) == frame).all()


def test_the_long_side_is_floored() -> None:
    """As the -hf processor computes it."""
    assert resized(1080, 1920, 224) == (224, 398)
    assert resized(500, 375, 224) == (298, 224)


def _smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR))
