"""Frames of any size to square ones: short side resized, centre cropped, as the processor of the -hf checkpoint does.

One path for every machine: bicubic with antialias in float32, then clamp and round. torch's own uint8 bicubic differs from
it by up to 18 levels on noise. Where a byte of the result may change, raise the version in `decode.RESIZE`: the fingerprint
holds it.
"""

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F


def fit_square(frames_FHWC: npt.NDArray[np.uint8], side_px: int) -> npt.NDArray[np.uint8]:
    """Return (F, S, S, 3) uint8 from (F, H, W, 3) uint8 RGB frames.

    The long side becomes `int(S * long / short)`, the crop begins at `int((length - S) / 2)`.
    """
    _, height, width, _ = frames_FHWC.shape
    new_height, new_width = resized(height, width, side_px)
    top, left = (new_height - side_px) // 2, (new_width - side_px) // 2
    squares = np.empty((len(frames_FHWC), side_px, side_px, 3), dtype=np.uint8)
    for at, frame_HWC in enumerate(frames_FHWC):  # one frame at a time: a float copy of a 4K clip would be 0.8 GB
        pixels = torch.from_numpy(np.array(frame_HWC)).permute(2, 0, 1)[None].float()
        if (height, width) != (new_height, new_width):
            pixels = F.interpolate(pixels, (new_height, new_width), mode="bicubic", antialias=True, align_corners=False)
        square = pixels[0, :, top : top + side_px, left : left + side_px]
        squares[at] = square.clamp(0, 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return squares


def resized(height: int, width: int, side_px: int) -> tuple[int, int]:
    """Return height and width after the short side became S."""
    if height <= width:
        return side_px, int(side_px * width / height)
    return int(side_px * height / width), side_px
