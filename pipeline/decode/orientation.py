"""Frames as RGB pixels, upright: the whole display matrix, mirrors included, as FFmpeg's own automatic rotation applies it."""

from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
"""(H, W, 3), RGB."""
IDENTITY = (1 << 16, 0, 0, 1 << 16)


def upright(frame: Any, size: tuple[int, int] | None = None) -> Pixels:
    """Return the pixels of a decoded frame, scaled to a width and height where these differ. Any: PyAV's compiled frame."""
    width, height = size or (frame.width, frame.height)
    options = {} if (width, height) == (frame.width, frame.height) else {"interpolation": "BICUBIC"}
    pixels = frame.reformat(width=width, height=height, format="rgb24", threads=1, **options).to_ndarray()
    return turned(pixels, display_matrix(frame))


def display_matrix(frame: Any) -> tuple[int, int, int, int]:
    """Return a, b, c, d of a frame's display matrix in 1/65536; the identity where there is none. Any: PyAV's frame."""
    try:
        data = frame.side_data["DISPLAYMATRIX"]
    except KeyError:
        return IDENTITY
    matrix = np.frombuffer(bytes(data), dtype=np.int32)
    return int(matrix[0]), int(matrix[1]), int(matrix[3]), int(matrix[4])


def turned(pixels: Pixels, matrix: tuple[int, int, int, int]) -> Pixels:
    """Return pixels turned and mirrored by a display matrix, to the nearest quarter turn."""
    a, b, c, d = matrix
    if abs(a) + abs(d) < abs(b) + abs(c):
        pixels = pixels.transpose(1, 0, 2)
        a, d = c, b
    if a < 0:
        pixels = pixels[:, ::-1]
    if d < 0:
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
