"""The clip of a video file: which frames are asked for, the plan that gives them, and the proof that they are the right ones.

A file is read once without decoding. Where its packets tell the display order, the fewest runs from true random-access points
are decoded; elsewhere, and where a run does not keep its promise, everything in order.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.corpus.span import Span
from pipeline.decode import decord_reader
from pipeline.decode.config import DecodeConfig
from pipeline.decode.container import Limits
from pipeline.decode.order import DisplayOrder, display_order, display_times
from pipeline.decode.orientation import IDENTITY, display_matrix, upright
from pipeline.decode.plan import runs_for
from pipeline.decode.reader import UnprovenError, Walk, read_runs
from pipeline.decode.sampling import frame_indices, snapped
from pipeline.decode.scan import Scan, scan
from pipeline.decode.timeline import LOST, Timeline, decoded_timeline, planned_timeline
from pipeline.errors import VideoError


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Sampled frames of one video."""

    frames: npt.NDArray[np.uint8]
    """(F, H, W, 3), RGB, upright."""
    timestamps_s: list[float]
    """Time of each shown frame since the first frame of the file."""
    decoder: str
    """decord or pyav."""
    substituted: int
    """How many of the F are not, or not provably, the frame that was asked for."""
    displaced_s: float = 0.0
    """How far the policy `keyframe` moved a frame at most."""
    reason: str = ""
    """Why frames were substituted, or why everything was decoded."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Frames of a timeline that make a clip."""

    asked: list[int]
    """The policy's indices."""
    shown: list[int]
    """The same, or random-access points near them."""


def read_clip(path: Path, demuxer: str, config: DecodeConfig, span: Span | None = None) -> Clip:
    """Return the sampled frames of a video, or of the part between two times in seconds. Raises VideoError."""
    return VideoFile(path, demuxer, config).clip(span)


class VideoFile:
    """A local file of which parts are read, one after another. The clip of a part is the same whatever was read before it."""

    def __init__(self, path: Path, demuxer: str, config: DecodeConfig) -> None:
        self.path = path
        self.demuxer = demuxer
        self.config = config
        self.limits = Limits(config)
        self.walk: Walk | None = None
        """Decoding in order, as far as it went."""
        self.decoded: Timeline | None = None
        """What decoding everything in order showed; None as long as nobody had to know."""

    @cached_property
    def scan(self) -> Scan:
        """What the packets tell. Raises VideoError."""
        return scan(self.path, self.demuxer, self.config)

    @cached_property
    def order(self) -> DisplayOrder | str:
        """The display order by the packets, or why they do not tell it."""
        return display_order(self.scan)

    @cached_property
    def planned(self) -> Timeline | None:
        """The timeline of a file whose frames can be planned."""
        return planned_timeline(self.scan, self.order) if isinstance(self.order, DisplayOrder) else None

    @cached_property
    def decord_refusal(self) -> str:
        """Why decord is not used for this file; empty where it is."""
        if isinstance(self.order, str):
            return self.order
        runs = runs_for(self.order, self.scan.packets, self.order.shown[:1])
        try:
            (frame,) = read_runs(self.scan, self.order, runs, self.limits).values()
        except UnprovenError as error:
            return str(error)
        return decord_reader.refusal(self.scan, self.order, is_turned=display_matrix(frame) != IDENTITY)

    @property
    def duration_s(self) -> float:
        """The time from the first frame to the end of the last, which is taken to last as long as the mean."""
        times = self.planned.times_s if self.planned else display_times(self.scan, [p.pts for p in self.scan.packets])
        return times[-1] * len(times) / (len(times) - 1) if len(times) > 1 else 0.0

    def clip(self, span: Span | None = None) -> Clip:
        """Return the sampled frames of the video, or of the part between two times in seconds.

        Raises:
            VideoError: CORRUPT where more than `max_substituted` frames cannot be proven; TOO_LARGE, OUT_OF_MEMORY,
                UNSUPPORTED_CODEC, NO_VIDEO_STREAM.
        """
        clip = self.unchecked_clip(span)
        self.check(clip)
        return clip

    def check(self, clip: Clip) -> None:
        """Raise VideoError CORRUPT where more than `max_substituted` frames of a clip cannot be proven."""
        if clip.substituted > self.config.max_substituted:
            told = f"{clip.substituted} of {self.config.frames} frames are lost or cannot be proven right"
            raise VideoError("CORRUPT", f"{told}: {clip.reason}")

    def unchecked_clip(self, span: Span | None) -> Clip:
        """Return the same as `clip` however many frames cannot be proven. Raises VideoError for everything else."""
        order, timeline = self.order, self.planned
        if isinstance(order, str) or timeline is None:
            return self._in_order(span, f"{order}: everything was decoded")
        if self.scan.damaged:
            return self._in_order(span, "")
        sample = self.sample(timeline, span)
        if self.config.decoder == "decord" and not self.decord_refusal:
            with suppress(decord_reader.DecordFailedError):
                return self._by_decord(order, timeline, sample)
        try:
            return self._by_plan(order, timeline, sample)
        except UnprovenError as error:
            return self._in_order(span, str(error))

    def sample(self, timeline: Timeline, span: Span | None) -> Sample:
        """Return the frames of the clip. Raises VideoError where the video has ended before the part begins."""
        first, last = (0, len(timeline)) if span is None else _window(timeline, span)
        asked = [first + index for index in frame_indices(max(last - first, 1), self.config.frames, self.config.policy)]
        if self.config.policy != "keyframe" or not isinstance(self.order, DisplayOrder):
            return Sample(asked=asked, shown=asked)
        places = (self.order.index_of.get(start) for start in self.order.starts)
        return Sample(asked=asked, shown=snapped(asked, sorted(p for p in places if p is not None and first <= p < last)))

    def _by_plan(self, order: DisplayOrder, timeline: Timeline, sample: Sample) -> Clip:
        sources = {index: timeline.sources[index] for index in available(timeline, sample.shown)}
        runs = runs_for(order, self.scan.packets, sources.values())
        frames = read_runs(self.scan, order, runs, self.limits)
        return _clip(timeline, sample, {index: frames[source] for index, source in sources.items()}, timeline.reason)

    def _by_decord(self, order: DisplayOrder, timeline: Timeline, sample: Sample) -> Clip:
        pixels = decord_reader.read_frames(self.scan, order, sorted(set(sample.shown)))
        return Clip(
            frames=np.stack([pixels[index] for index in sample.shown]),
            timestamps_s=[round(timeline.times_s[index], 6) for index in sample.shown],
            decoder="decord",
            substituted=0,
            displaced_s=_displaced_s(timeline, sample),
        )

    def _in_order(self, span: Span | None, why: str) -> Clip:
        """Decode everything in order: the first time for the timeline too, keeping the frames that the packets suggest."""
        frames: dict[int, Any] = {}
        if self.decoded is None:
            self.walk = Walk(self.scan, self.limits)
            frames = self.walk.take(self._suggested(span), to_the_end=True)
            self.decoded = decoded_timeline(self.scan, self.order, self.walk)
        timeline = self.decoded
        if all(place == LOST for place in timeline.places or ()):
            raise VideoError("CORRUPT", f"none of {len(self.scan.packets)} packets could be decoded")
        sample = self.sample(timeline, span)
        places = {index: timeline.places[index] for index in available(timeline, sample.shown) if timeline.places}
        frames |= self._taken(set(places.values()) - frames.keys())
        return _clip(timeline, sample, {index: frames[place] for index, place in places.items()}, timeline.reason or why)

    def _suggested(self, span: Span | None) -> set[int]:
        """Return where the frames of a clip come out if nothing is lost."""
        if self.planned is not None:
            return set(self.sample(self.planned, span).shown)
        total = len(self.scan.packets) - self.scan.first_start
        return set(frame_indices(max(total, 1), self.config.frames, self.config.policy)) if span is None else set()

    def _taken(self, places: set[int]) -> dict[int, Any]:
        """Return frames by their place among all outputs; a walk that has passed the first of them begins anew."""
        if not places:
            return {}
        if self.walk is None or len(self.walk.outputs) > min(places):
            self.walk = Walk(self.scan, self.limits)
        walk, self.walk = self.walk, None  # one that fails is not gone on with
        frames = walk.take(places)
        self.walk = walk
        return frames


def available(timeline: Timeline, indices: Iterable[int]) -> set[int]:
    """Return the frames that stand for some: themselves, or where nothing came out, the nearest before, else after."""
    return {found for index in indices if (found := _nearest(timeline, index)) is not None}


def _nearest(timeline: Timeline, index: int) -> int | None:
    """Return the nearest frame that came out, an earlier one if there is any."""
    before = (i for i in range(index, -1, -1) if timeline.came_out(i))
    after = (i for i in range(index + 1, len(timeline)) if timeline.came_out(i))
    return next(before, next(after, None))


def _clip(timeline: Timeline, sample: Sample, frames: Mapping[int, Any], reason: str) -> Clip:
    """Return the clip of some decoded frames, all of the size that the first has. Any: PyAV's frames are compiled."""
    stand_ins = [index for wanted in sample.shown if (index := _nearest(timeline, wanted)) is not None]
    first = frames[stand_ins[0]]
    size = first.width, first.height
    pixels = {index: upright(frame, size) for index, frame in frames.items()}
    return Clip(
        frames=np.stack([pixels[index] for index in stand_ins]),
        timestamps_s=[round(timeline.times_s[index], 6) for index in sample.shown],
        decoder="pyav",
        substituted=sum(not timeline.proven[index] for index in sample.shown),
        displaced_s=_displaced_s(timeline, sample),
        reason=reason,
    )


def _displaced_s(timeline: Timeline, sample: Sample) -> float:
    """Return how far a frame was moved at most, in seconds."""
    moved = (abs(timeline.times_s[a] - timeline.times_s[b]) for a, b in zip(sample.asked, sample.shown, strict=True))
    return round(max(moved), 6)


def _window(timeline: Timeline, span: Span) -> tuple[int, int]:
    """Return the frames shown between two times; where no frame begins, the one that is still on the screen.

    Raises VideoError where the video has ended by then.
    """
    times = timeline.times_s
    first, last = (bisect_left(times, time - 0.0005) for time in span)
    if first < last:
        return first, last
    if span[0] > span[1] or span[0] > times[-1] + (times[-1] / max(len(times) - 1, 1)):
        raise VideoError("CORRUPT", f"no frame between {span[0]:g} and {span[1]:g} s")
    return max(first - 1, 0), max(first, 1)
