"""Frames of any size to square ones: short side resized, centre cropped, as the processor of the -hf checkpoint does.

The resize is Pillow's own bicubic, so the result equals the processor's byte for byte. Where a byte may change, raise the
version in `config.RESIZE`: the fingerprint holds it, with the version of Pillow.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image


def fit_square(frames_FHWC: npt.NDArray[np.uint8], side_px: int) -> npt.NDArray[np.uint8]:
    """Return (F, S, S, 3) uint8 from (F, H, W, 3) uint8 RGB frames.

    The long side becomes `int(S * long / short)`, the crop begins at `(length - S) // 2`.
    """
    _, height, width, _ = frames_FHWC.shape
    new_height, new_width = resized(height, width, side_px)
    top, left = (new_height - side_px) // 2, (new_width - side_px) // 2
    squares = np.empty((len(frames_FHWC), side_px, side_px, 3), dtype=np.uint8)
    for at, frame_HWC in enumerate(frames_FHWC):
        image = Image.fromarray(frame_HWC).resize((new_width, new_height), Image.Resampling.BICUBIC)
        squares[at] = np.asarray(image)[top : top + side_px, left : left + side_px]
    return squares


def resized(height: int, width: int, side_px: int) -> tuple[int, int]:
    """Return height and width after the short side became S."""
    if height <= width:
        return side_px, int(side_px * width / height)
    return int(side_px * height / width), side_px
