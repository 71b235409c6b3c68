"""Rows of int8 with a scale each: half the bytes of float16 for at most 1/254 of a row's largest value in each element."""

from typing import Any

import numpy as np
import numpy.typing as npt


def to_int8(rows: npt.NDArray[Any]) -> tuple[bytes, bytes]:
    """Return int8 values and float32 scales, little-endian, of rows (S, D); a row of zeros has the scale 0.

    Symmetric, rounding half to even: value = scale * int8, scale = largest magnitude / 127.
    """
    wide = rows.astype(np.float32)
    scale = (np.abs(wide).max(axis=1, initial=0) / np.float32(127)).astype("<f4")
    steps = np.divide(wide, scale[:, None], out=np.zeros_like(wide), where=scale[:, None] > 0)
    return np.rint(steps).astype(np.int8).tobytes(), scale.tobytes()


def from_int8(values: Any, scales: Any) -> npt.NDArray[np.float16]:
    """Return rows (S, D) from buffers of int8 values and float32 scales. Any: whatever has a buffer."""
    scale = np.frombuffer(scales, "<f4")
    steps = np.frombuffer(values, np.int8).reshape(len(scale), -1) if len(scale) else np.zeros((0, 0), np.int8)
    return (steps * scale[:, None]).astype(np.float16)
