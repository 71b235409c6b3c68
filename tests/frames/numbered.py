"""Pictures whose number can be read off: ten bars in the upper half are its bits, the lower half is a texture that moves."""

from collections.abc import Iterable
from functools import cache

import numpy as np

BITS = 10
WHITE, BLACK = 235, 20


@cache
def texture(width: int, height: int, seed: int) -> np.ndarray:
    blocks = np.random.default_rng(seed).integers(0, 255, (height // 8 + 1, width // 8 + 1, 3)).astype(np.uint8)
    return np.kron(blocks, np.ones((8, 8, 1), np.uint8))[:height, :width]


def picture(number: int, width: int = 96, height: int = 64, seed: int = 0) -> np.ndarray:
    """Return the picture of a number below 1024, (H, W, 3) uint8."""
    pixels = np.roll(texture(width, height, seed), number * 3 % width, axis=1).copy()
    for bit in range(BITS):
        left, right = bit * width // BITS, (bit + 1) * width // BITS
        pixels[: height // 2, left:right] = WHITE if number >> bit & 1 else BLACK
    return pixels


def number_of(pixels: np.ndarray) -> int:
    """Return the number that a picture shows; -1 where its bars are not clearly one."""
    height, width, _ = pixels.shape
    rows = pixels[height // 8 : 3 * height // 8].mean(axis=(0, 2))
    number = 0
    for bit in range(BITS):
        left, right = bit * width // BITS, (bit + 1) * width // BITS
        margin = (right - left) // 4
        level = rows[left + margin : right - margin].mean()
        if 90 < level < 165:
            return -1
        number |= int(level > 128) << bit
    return number


def numbers_of(frames: Iterable[np.ndarray]) -> list[int]:
    return [number_of(frame) for frame in frames]
