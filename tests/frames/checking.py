"""Whether a clip shows the frames that were asked for."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.corpus.fetch import demuxer_of
from pipeline.corpus.span import Span
from pipeline.decode.config import DecodeConfig
from pipeline.decode.sampling import frame_indices
from pipeline.decode.video_file import Clip, VideoFile
from pipeline.errors import VideoError
from tests.frames.numbered import numbers_of
from tests.frames.writing import sequential


def opened(path: Path, **settings: object) -> VideoFile:
    return VideoFile(path, demuxer_of(path.read_bytes()[:4096]), DecodeConfig(**settings))  # type: ignore[arg-type]


def clip_of(path: Path, span: Span | None = None, **settings: object) -> Clip:
    return opened(path, **settings).clip(span)


@dataclass(frozen=True)
class Verdict:
    """What a clip shows and what it should."""

    expected: list[int]
    shown: list[int]
    detail: str

    @property
    def is_right(self) -> bool:
        return self.expected == self.shown


def verdict(path: Path, truth: list[int] | None = None, **settings: object) -> Verdict:
    """Compare a clip with the numbers of all frames; by default those that decoding everything in order shows."""
    truth = numbers_of(sequential(path)) if truth is None else truth
    policy = settings.get("policy", "linspace")
    expected = [truth[index] for index in frame_indices(len(truth), 8, policy)] if truth else []  # type: ignore[arg-type]
    try:
        clip = clip_of(path, **settings)
    except VideoError as error:
        return Verdict(expected, [], f"{error.code}: {error.detail}")
    return Verdict(expected, numbers_of(clip.frames), f"{clip.decoder} {clip.substituted} {clip.reason}")
