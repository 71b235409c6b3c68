"""Write a corpus of moving shapes: `framefold shapes OUT --videos 24`."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jobs.runtime.launch import Report, launch
from pipeline.errors import ConfigError

TRAINING_SEEDS = 1_000_000
"""Seeds from here on belong to training; everything below is held out."""


@dataclass(frozen=True, kw_only=True)
class ShapesJob:
    """Write short MP4 files of moving shapes, with questions and answers in ActivityNet-QA's layout."""

    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")]
    """Folder for videos/, test_q.json and test_a.json."""
    videos: int = 24
    """How many."""
    first_seed: int = 0
    """Seed of the first; below 1,000,000 no model of this project has been trained on it."""
    side_px: int = 256
    """Side of the frames."""

    def __post_init__(self) -> None:
        if self.videos < 1 or self.first_seed < 0:
            raise ConfigError(f"expected videos above 0 and first_seed of 0 or more, got {self.videos}, {self.first_seed}")
        if not 16 <= self.side_px <= 4096 or self.side_px % 2:
            raise ConfigError(f"side_px must be even and from 16 to 4096, got {self.side_px}")


def run(job: ShapesJob) -> Report:
    """Render and encode the clips."""
    from pipeline.synthetic.corpus import write_corpus

    began = time.monotonic()
    seeds = range(job.first_seed, job.first_seed + job.videos)
    try:
        count = write_corpus(Path(job.out), seeds, job.side_px)
    except OSError as error:
        raise ConfigError(f"{job.out}: cannot be written: {error}") from error
    return {
        "job": "shapes",
        "videos": job.videos,
        "questions": count,
        "corpus": str(Path(job.out) / "videos"),
        "questions_file": str(Path(job.out) / "test_q.json"),
        "answers_file": str(Path(job.out) / "test_a.json"),
        "held_out": job.first_seed + job.videos <= TRAINING_SEEDS,
        "seconds": round(time.monotonic() - began, 2),
    }


def main(args: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    return launch(ShapesJob, run, "framefold shapes", args)


if __name__ == "__main__":
    sys.exit(main())
