"""`python -m tests.poison.leaks --decodes 5000`: resident memory of stage and child while small real videos are decoded.

Exit 1 where the second half of the run holds noticeably more than the first: memory is to be flat.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.decode.config import DecodeConfig
from pipeline.decode.stage import Decode
from tests.poison.mutate import VIDEOS
from tests.poison.push import one

SMALL = (
    "unordered.mov", "video_90.mov", "testsrc2_mpeg4.mp4", "discard_first_keyframe.mp4", "nasa_13013_rotated.mp4",
    "h265_video.mp4", "av1_video.mkv", "testsrc2.mp4", "testsrc2_odd_height_and_width_vp9.mp4",
)  # fmt: skip
"""Six codecs."""
FLAT_MB = 48.0
"""How much more the second half of a run may hold, at its median, than the first."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Memory after so many decodes."""

    decodes: int
    seconds: float
    parent_mb: float
    child_mb: float
    children: int
    """How many children were replaced so far."""


def measured(decodes: int, every: int, config: DecodeConfig) -> Iterator[Measured]:
    """Decode small videos in turn; yield what is held before the first, and after every so many."""
    began = time.monotonic()
    with Decode(config, 56) as stage:
        for number in range(decodes + 1):
            if number % every == 0:
                yield Measured(
                    decodes=number,
                    seconds=time.monotonic() - began,
                    parent_mb=_resident_mb(),
                    child_mb=stage.child.resident_bytes() / 2**20,
                    children=sum(stage.child.ended.values()),
                )
            if number < decodes:
                name = SMALL[number % len(SMALL)]
                row, _ = one(stage, VIDEOS / name)
                assert row["error_class"] is None, (name, row["error"])


def growth_mb(values: Sequence[float]) -> float:
    """Return how much larger the median of the second half is than that of the first."""
    middle = len(values) // 2
    first, second = sorted(values[:middle]), sorted(values[middle:])
    return second[len(second) // 2] - first[len(first) // 2]


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> int:
    flags = argparse.ArgumentParser(prog="python -m tests.poison.leaks", description=__doc__)
    flags.add_argument("--decodes", type=int, default=5000)
    flags.add_argument("--every", type=int, default=500)
    flags.add_argument("--recycle", type=int, default=DecodeConfig().recycle, help="videos per child; 0 keeps one for all")
    flags.add_argument("--recycle-mb", type=int, default=DecodeConfig().recycle_mb)
    given = flags.parse_args()
    config = DecodeConfig(recycle=given.recycle, recycle_mb=given.recycle_mb)
    sys.stdout.write("decodes  seconds  parent MB  child MB  replaced\n")
    rows = []
    for row in measured(given.decodes, given.every, config):
        rows.append(row)
        line = f"{row.decodes:7d}  {row.seconds:7.0f}  {row.parent_mb:9.1f}  {row.child_mb:8.1f}  {row.children:8d}\n"
        sys.stdout.write(line)
        sys.stdout.flush()
    warm = rows[1:]
    grown = {name: growth_mb([getattr(row, name) for row in warm]) for name in ("parent_mb", "child_mb")}
    sys.stdout.write(f"second half against first: parent {grown['parent_mb']:+.1f} MB, child {grown['child_mb']:+.1f} MB\n")
    return 1 if max(grown.values()) > FLAT_MB else 0


if __name__ == "__main__":
    sys.exit(main())
