"""Damaged files: `python -m tests.frames.damage --files 200`. Frames that are not those asked for are counted."""

import argparse
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

import av
import numpy as np

from pipeline.decode.video_file import Clip
from pipeline.errors import VideoError
from tests.frames.checking import clip_of
from tests.frames.sweep import draw

HARMLESS = 4.0
"""Mean difference, in levels, below which a damaged file's frame is the intact one's."""


KINDS = ("cut", "zeros", "noise", "flips", "hole")


def damaged(rng: random.Random, content: bytes, kind: str | None = None, length: int = 0) -> tuple[bytes, str]:
    """Return the bytes of a file after an accident, behind its first tenth."""
    size, at = len(content), int(len(content) * rng.choice((0.4, rng.uniform(0.1, 0.95))))
    kind = kind or rng.choice(KINDS)
    length = min(length or rng.choice((16, 200, 2000)), size - at)
    if kind == "cut":
        return content[:at], f"cut at {at} of {size}"
    if kind == "hole":
        return content[:at] + content[at + length :], f"{length} bytes lost at {at} of {size}"
    changed = bytearray(content)
    if kind == "flips":
        for _ in range(8):
            changed[at + rng.randrange(length or 1)] ^= 1 << rng.randrange(8)
    else:
        changed[at : at + length] = bytes(length) if kind == "zeros" else rng.randbytes(length)
    return bytes(changed), f"{kind} {length} at {at} of {size}"


def unnoticed(intact: Clip, found: Clip) -> int:
    """Return how many frames are neither those of the intact file nor counted as substituted."""
    if intact.frames.shape != found.frames.shape:
        return max(0, len(intact.frames) - found.substituted)
    wrong = np.abs(intact.frames.astype(int) - found.frames.astype(int)).mean(axis=(1, 2, 3)) > HARMLESS
    return max(0, int(wrong.sum()) - found.substituted)


def main() -> int:
    """Print each file with frames that are wrong without a word, and counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.files):
            counts[checked(random.Random(f"damage {arguments.seed} {number}"), Path(folder), number)] += 1
    print(", ".join(f"{count} {word}" for word, count in sorted(counts.items())))
    return 0


def checked(rng: random.Random, folder: Path, number: int) -> str:
    try:
        drawn = draw(rng, folder, number)
        intact = clip_of(drawn.path)
    except (av.error.FFmpegError, ValueError, VideoError) as error:
        return f"not usable {type(error).__name__}"
    content, story = damaged(rng, drawn.path.read_bytes())
    drawn.path.write_bytes(content)
    try:
        found = clip_of(drawn.path, max_substituted=8)
    except VideoError as error:
        return f"refused {error.code}"
    finally:
        drawn.path.unlink()
    if (silent := unnoticed(intact, found)) == 0:
        return "intact" if found.substituted == 0 else "counted"
    print(f"{number}: {silent} unnoticed: {drawn.story} {story}: {found.substituted} {found.reason}", flush=True)
    return f"unnoticed {drawn.path.name.split('_')[1].split('.')[0]}"


if __name__ == "__main__":
    sys.exit(main())
