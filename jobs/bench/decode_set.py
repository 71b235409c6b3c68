"""Files to decode: a texture that pans, squares that move on their own, and grain, so that no frame is cheap to predict."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

RATE = Fraction(25)
GRAIN_LEVELS = 4.0
GRAINS = 16
"""Pictures of grain, used in turn."""
SQUARES = 6


@dataclass(frozen=True, kw_only=True)
class Files:
    """Some files of one kind."""

    name: str
    count: int
    width: int
    height: int
    seconds: float
    bits_per_s: int
    preset: str = "medium"
    gop: int = 250
    b_frames: int = 3

    @property
    def told(self) -> str:
        """Return the kind in words."""
        return (
            f"{self.count} files, {self.width}x{self.height}, {self.seconds:g} s, H.264 {self.preset}, "
            f"{self.bits_per_s / 1e6:g} Mbit/s, GOP {self.gop}, {self.b_frames} B-frames"
        )


SETS = (
    Files(name="320x240", count=5, width=320, height=240, seconds=10, bits_per_s=500_000),
    Files(name="1280x720", count=2, width=1280, height=720, seconds=120, bits_per_s=2_000_000),
)
QUICK = (
    Files(name="96x64", count=2, width=96, height=64, seconds=2, bits_per_s=100_000, preset="ultrafast", gop=12, b_frames=2),
)


def written(files: Files, folder: Path) -> list[Path]:
    """Return the files of a kind; those that a folder holds already are not written again."""
    return [_written(files, folder / f"{files.name}-{number}.mp4", number) for number in range(files.count)]


def _written(files: Files, path: Path, seed: int) -> Path:
    if path.exists():
        return path
    beside = path.with_suffix(".part")
    with av.open(str(beside), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": files.preset, "x264-params": "log-level=-1"})
        stream.width, stream.height, stream.pix_fmt = files.width, files.height, "yuv420p"
        stream.bit_rate = files.bits_per_s
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = files.gop, files.b_frames
        scene = Scene(files.width, files.height, seed)
        for index in range(round(files.seconds * RATE)):
            frame = av.VideoFrame.from_ndarray(scene.picture(index), format="yuv420p")
            frame.pts, frame.time_base = index, 1 / RATE
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return beside.rename(path)


class Scene:
    """Pictures in YUV 4:2:0: a pan to and fro over a texture, squares in front of it, grain over all."""

    def __init__(self, width: int, height: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.width, self.height = width, height
        self.luma, self.blue, self.red = (_texture(random, 2 * height, 2 * width) for _ in range(3))
        self.grain = random.normal(0, GRAIN_LEVELS, (GRAINS, height, width)).astype(np.int16)
        self.pan = random.uniform(0.5, 2.0, 2)
        self.places, self.steps = random.uniform(0, 1, (SQUARES, 2)), random.uniform(0.001, 0.01, (SQUARES, 2))
        self.levels = random.integers(40, 220, SQUARES)

    def picture(self, index: int) -> npt.NDArray[np.uint8]:
        """Return one picture, its planes one below the other, (H * 3 / 2, W) uint8."""
        top, left = (int(_swung(index * step, size)) for step, size in zip(self.pan, (self.height, self.width), strict=True))
        luma = self.luma[top : top + self.height, left : left + self.width].astype(np.int16)
        side = self.height // 6
        for place, step, level in zip(self.places, self.steps, self.levels, strict=True):
            y, x = (int(_swung(p + index * s, 1) * (n - side)) for p, s, n in zip(place, step, luma.shape, strict=True))
            luma[y : y + side, x : x + side] = level
        luma += self.grain[index % GRAINS]
        rows, columns = slice(top // 2, (top + self.height) // 2), slice(left // 2, (left + self.width) // 2)
        planes = [luma.clip(16, 235).astype(np.uint8)]
        for chroma in (self.blue, self.red):
            planes.append(chroma[rows, columns][: self.height // 2, : self.width // 2].reshape(-1, self.width))
        return np.concatenate(planes)


def _swung(way: float, length: float) -> float:
    """Return where something is that moves to and fro between 0 and a length."""
    return length - abs(way % (2 * length) - length)


def _texture(random: np.random.Generator, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return noise of several sizes, coarse and fine."""
    whole = np.zeros((height, width), np.float32)
    for size, weight in ((64, 60.0), (16, 40.0), (4, 20.0)):
        blocks = random.normal(0, weight, (height // size + 1, width // size + 1)).astype(np.float32)
        whole += np.kron(blocks, np.ones((size, size), np.float32))[:height, :width]
    return (whole + 126).clip(16, 235).astype(np.uint8)
