"""Resize and crop: byte for byte what the image processor of the transformers checkpoint makes of the same frames."""

import numpy as np
import pytest
from PIL import Image
from transformers.models.video_llava.image_processing_video_llava import VideoLlavaImageProcessor

from pipeline.decode.transforms import fit_square, resized

SIZES = [(240, 320), (720, 1280), (321, 241), (64, 64), (50, 90), (90, 50), (63, 200), (1, 7), (65, 64), (1081, 1921)]


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR))


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def processed(frame: np.ndarray, side_px: int) -> np.ndarray:
    """Return what the processor hands to normalization, (S, S, 3) uint8."""
    processor = VideoLlavaImageProcessor(
        size={"shortest_edge": side_px}, crop_size={"height": side_px, "width": side_px}, do_rescale=False, do_normalize=False
    )
    values = processor.preprocess(images=frame, return_tensors="np", input_data_format="channels_last")["pixel_values_images"]
    return values[0].transpose(1, 2, 0)


@pytest.mark.parametrize("picture", [smooth, noise])
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("side_px", [64, 56])
def test_frame_is_resized_and_cropped_byte_for_byte_as_the_processor_does(
    picture: object, height: int, width: int, side_px: int
) -> None:
    """Noise is the hardest case: float arithmetic differs from it by up to 24 levels."""
    frame = picture(height, width)  # type: ignore[operator]
    assert (fit_square(frame[None], side_px)[0] == processed(frame, side_px)).all()


def test_frames_do_not_depend_on_their_neighbours() -> None:
    """A clip is its frames one by one."""
    frames = np.stack([smooth(90, 120, seed) for seed in range(3)])
    together = fit_square(frames, 32)
    assert (together == np.concatenate([fit_square(frames[i : i + 1], 32) for i in range(3)])).all()


def test_frame_of_the_right_size_is_left_alone() -> None:
    """Nothing is resampled where nothing needs to be."""
    frame = noise(32, 32)[None]
    assert (fit_square(frame, 32) == frame).all()


def test_frame_of_any_memory_layout_gives_the_same_square() -> None:
    """Turned and mirrored frames are views."""
    frame = smooth(90, 120)
    views = (frame[::-1], frame[:, ::-1], frame.transpose(1, 0, 2))
    assert all((fit_square(v[None], 32) == fit_square(np.ascontiguousarray(v)[None], 32)).all() for v in views)


def test_long_side_is_floored() -> None:
    """As the -hf processor computes it."""
    assert resized(1080, 1920, 224) == (224, 398)
    assert resized(500, 375, 224) == (298, 224)
