"""What decoding makes of one video: fetched, then looked at and decoded in a child process as in the decode stage."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from pipeline.corpus.fetch import Fetched, fetch
from pipeline.corpus.segments import escaped, file_of
from pipeline.corpus.span import Span
from pipeline.decode.config import DecodeConfig
from pipeline.decode.facts import ClipFacts, Part, StreamFacts, from_json
from pipeline.decode.tempdirs import scratch, sweep
from pipeline.decode.worker_client import DecodeChild
from pipeline.errors import ConfigError, VideoError
from pipeline.names import local_path
from pipeline.storage.preflight import check_reachable

F = TypeVar("F", StreamFacts, ClipFacts)
SEGMENT = re.compile(r"(?P<name>.+)#t=(?P<start>\d+(?:\.\d+)?),(?P<end>\d+(?:\.\d+)?)", re.DOTALL)
"""A segment as a person writes it, with any number of decimals."""


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What is known of one video, as far as its inspection went."""

    video: str
    """As it was asked for."""
    segment: Span | None
    fetched: Fetched | None = None
    stream: StreamFacts | None = None
    clip: ClipFacts | None = None
    thumbnails: npt.NDArray[np.uint8] | None = None
    """(F, H, W, 3), RGB; None where no frame was decoded, or none is wanted."""
    error_class: str = ""
    """Class of the failure; empty where the video can be used."""
    error: str = ""


class Inspector:
    """Looks at videos one after another. Close it, or use it in a `with` statement, to end the child process."""

    def __init__(self, config: DecodeConfig, box_px: int, storage_options: Mapping[str, Any] | None = None) -> None:
        self.config = config
        self.storage_options = dict(storage_options or {})
        self.child = DecodeChild(config, box_px)
        sweep()

    def __enter__(self) -> "Inspector":
        return self

    def __exit__(self, *_: object) -> None:
        self.child.close()

    def inspect(self, video: str) -> Inspection:
        """Return what is known of a video: a path or any fsspec URL, whole or a segment. A failure is part of it."""
        name, span = split_segment(video)
        found = Inspection(video=video, segment=span)
        with scratch() as folder:
            try:
                found = replace(found, fetched=self._fetched(name, folder))
                found = replace(found, stream=self._facts(StreamFacts, found, "stream")[0])
                clip, thumbnails = self._facts(ClipFacts, found, "clip")
            except VideoError as error:
                return replace(found, error_class=error.code, error=error.detail)
        return replace(found, clip=clip, thumbnails=thumbnails, error_class=clip.error_class, error=clip.error)

    def _fetched(self, name: str, folder: Path) -> Fetched:
        """Fetch a file. Raises VideoError, UNREADABLE where nothing answers at its address."""
        try:
            check_reachable([name], self.storage_options)
        except ConfigError as error:
            raise VideoError("UNREADABLE", error.said) from error
        return fetch(file_of(name), folder / "video", self.config.max_bytes, self.storage_options)

    def _facts(self, kind: type[F], found: Inspection, part: Part) -> tuple[F, npt.NDArray[np.uint8] | None]:
        """Return what the child tells, and the frames it sends. Raises VideoError."""
        fetched = found.fetched
        if fetched is None:
            raise ValueError("the video must be fetched first")
        answer = self.child.inspect(fetched.path, fetched.demuxer, found.segment, part)
        try:
            facts = from_json(kind, json.loads(answer["facts"]))
        except (ValueError, RecursionError) as error:
            raise VideoError("CRASHED", f"the decoder process returned an invalid response: {error}") from error
        frames = np.frombuffer(answer["thumbnails"], dtype=np.uint8).reshape(*answer["shape"], 3)
        return facts, frames if len(frames) else None


def split_segment(video: str) -> tuple[str, Span | None]:
    """Return the uri of a file and the span of a segment; a local file that is itself named like a segment is whole."""
    path = local_path(video)
    with suppress(OSError):  # a name that is too long is no file
        if path is not None and path.exists():
            return escaped(video), None
    found = SEGMENT.fullmatch(video)
    if found is None:
        return video, None
    return found["name"], (float(found["start"]), float(found["end"]))
