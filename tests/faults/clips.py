"""A corpus of tiny videos, each with content of its own, and of files that cannot be used."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

SIDE_PX, FRAMES = 64, 10
BAD = {
    "EMPTY": b"",
    "FORBIDDEN_PROTOCOL": b"#EXTM3U\nhttp://127.0.0.1:1/\n",
    "CORRUPT": b"no video at all " * 64,
}
"""Content of a file for each class that it must end in."""


@dataclass(frozen=True)
class Clips:
    """A folder of videos, what each contains and what must become of it."""

    folder: Path
    good: dict[str, str]
    """SHA-256 of each good video, by id."""
    bad: dict[str, str]
    """Class of each other file, by id."""


def make_clips(folder: Path, good: int, bad: int = 3) -> Clips:
    """Write MPEG-4 videos of 64 x 64 px and files that are none."""
    folder.mkdir(parents=True)
    digests, classes = {}, {}
    for number in range(good):
        path = folder / f"v{number:04}.mp4"
        _write(path, number)
        digests[path.stem] = hashlib.sha256(path.read_bytes()).hexdigest()
    for number in range(bad):
        path, code = folder / f"x{number:04}.mp4", list(BAD)[number % len(BAD)]
        path.write_bytes(BAD[code])
        classes[path.stem] = code
    return Clips(folder, digests, classes)


def _write(path: Path, number: int) -> None:
    """A square that moves over a ground, both in colours of this number."""
    random = np.random.default_rng(number)
    ground, colour = random.integers(0, 256, (2, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = SIDE_PX
        stream.pix_fmt = "yuv420p"
        for at in range(FRAMES):
            pixels = np.broadcast_to(ground, (SIDE_PX, SIDE_PX, 3)).copy()
            pixels[8 + 3 * at : 24 + 3 * at, number % 40 : number % 40 + 16] = colour
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
