"""Show what the decoder reads in videos and which frames it samples: `framefold inspect VIDEO...`."""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import tyro

from jobs.commands.inspect_text import lines
from jobs.runtime.launch import DONE, FAILED, Report, launch, storage_options
from pipeline.decode.config import DecodeConfig
from pipeline.decode.inspection import Inspection, Inspector
from pipeline.errors import ConfigError
from pipeline.names import local_path
from pipeline.redaction import redact_all, secrets_of
from pipeline.storage.filesystem import open_root, write_whole

BOX_PX, LEAST_BOX_PX = 256, 32
"""Side of the square that a frame of the picture fits into."""
FULL_SIZE_FRAMES = 64
"""Clips of more frames are drawn smaller."""


@dataclass(frozen=True, kw_only=True)
class InspectJob:
    """Show what the decoder reads in each video and which frames it samples.

    That is container, codec, stream, frames, random-access points, rotation and damage; then the plan for the clip, the decoder
    and why it is used, and which frames came out. A video that cannot be used is listed with its class, and the exit code is 1.
    """

    videos: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="VIDEO...")]
    """Paths or fsspec URLs; `name#t=start,end` is the part between two times in seconds."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    json: bool = False
    """Print one JSON object per video, one per line, instead of text."""
    png: str | None = None
    """Write the sampled frames of each video as a strip, one below the other, to this file; its name ends in .png."""
    storage_options: str = "{}"
    """JSON object for fsspec."""

    def __post_init__(self) -> None:
        if not self.videos:
            raise ConfigError("inspect needs at least one video")
        if self.png is not None and not self.png.lower().endswith(".png"):
            raise ConfigError(f"--png must name a file that ends in .png, got {self.png}")
        if self.png is not None and _place(self.png) in map(_place, self.videos):
            raise ConfigError(f"--png {self.png} is one of the videos: name another file")

    @property
    def options(self) -> dict[str, Any]:
        """Return the storage options as a mapping."""
        return storage_options(self.storage_options)

    @property
    def box_px(self) -> int:
        """Return the side of the square that a frame of the picture fits into; 0 where there is no picture."""
        if self.png is None:
            return 0
        return max(LEAST_BOX_PX, min(BOX_PX, int(BOX_PX * (FULL_SIZE_FRAMES / self.decode.frames) ** 0.5)))


def _place(name: str) -> str:
    """Return where a file lies: one place for all spellings of a local path."""
    path = local_path(name)
    return name if path is None else os.path.realpath(path)


def run(job: InspectJob) -> Report:
    """Print each video as soon as it is inspected, then write the picture."""
    classes: Counter[str] = Counter()
    strips = []
    target = None if job.png is None else open_root(job.png, job.options)
    for found in _inspected(job):
        _print(job, found)
        classes[found.error_class] += 1
        if target is not None:
            from jobs.commands.inspect_strip import strip

            strips.append(strip(found, job.box_px))
    if target is not None:
        from jobs.commands.inspect_strip import stacked

        write_whole(*target, stacked(strips))
    usable = classes.pop("", 0)
    return {
        "job": "inspect",
        "videos": len(job.videos),
        "usable": usable,
        "failed_by_class": dict(sorted(classes.items())),
        **({} if job.png is None else {"png": job.png}),
        "exit_code": FAILED if classes else DONE,
    }


def _inspected(job: InspectJob) -> Iterator[Inspection]:
    with Inspector(job.decode, job.box_px, job.options) as inspector:
        yield from map(inspector.inspect, job.videos)


def _print(job: InspectJob, found: Inspection) -> None:
    """Print one video; nothing that a name, a URL or a file says is a secret or a control character."""
    secrets = secrets_of(job.options)
    if job.json:
        text = json.dumps(redact_all(as_json(found), secrets)) + "\n"
    else:
        text = "\n".join(redact_all(lines(found, job.decode), secrets)) + "\n\n"
    sys.stdout.write(text)
    sys.stdout.flush()


def as_json(found: Inspection) -> dict[str, Any]:
    """Return all that is known of a video as plain data."""
    fetched = found.fetched
    return {
        "video": found.video,
        "segment": found.segment,
        "bytes": fetched.bytes if fetched else None,
        "sha256": fetched.sha256 if fetched else None,
        "demuxer": fetched.demuxer if fetched else None,
        "stream": asdict(found.stream) if found.stream else None,
        "clip": asdict(found.clip) if found.clip else None,
        "error_class": found.error_class or None,
        "error": found.error or None,
    }


def main(args: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    return launch(InspectJob, run, "framefold inspect", args)


if __name__ == "__main__":
    sys.exit(main())
