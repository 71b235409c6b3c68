"""The long run: `python -m tests.frames --files 400 --seed 1`. Prints every wrong clip, and counts."""

import argparse
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

import av

from tests.frames.checking import verdict
from tests.frames.numbered import numbers_of
from tests.frames.sweep import Drawn, draw
from tests.frames.writing import sequential


def main() -> int:
    """Return 1 where a clip is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, default=None)
    arguments = parser.parse_args()
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.files) if arguments.only is None else [arguments.only]:
            counts[checked(random.Random(f"{arguments.seed} {number}"), Path(folder), number)] += 1
    print(", ".join(f"{count} {word}" for word, count in sorted(counts.items())))
    return int(counts["wrong"] > 0)


def _truth(drawn: Drawn) -> list[int]:
    """Return the numbers of all frames that are to be shown."""
    if drawn.is_whole:
        return list(range(drawn.frames))
    shows_broken_ones = "mpeg4" in drawn.path.name and drawn.story.endswith("cut at its beginning")
    return numbers_of(sequential(drawn.path, from_key=shows_broken_ones))


def checked(rng: random.Random, folder: Path, number: int) -> str:
    """Draw a file and return what its clip is: right, wrong, refused, or not written where the encoder would not."""
    try:
        drawn = draw(rng, folder, number)
        truth = _truth(drawn)
    except (av.error.FFmpegError, ValueError, AttributeError) as error:
        print(f"{number}: FFmpeg cannot write or read it: {error}"[:200])
        return "not usable"
    policy = rng.choice(("linspace", "arange"))
    found = verdict(drawn.path, truth, policy=policy)
    drawn.path.unlink()
    if found.is_right:
        return "right, planned" if found.detail == "pyav 0 " else "right, in order"
    print(f"{number}: {drawn.story} {policy}: expected {found.expected}, got {found.shown}, {found.detail}", flush=True)
    return "wrong" if found.shown else "refused"


if __name__ == "__main__":
    sys.exit(main())
