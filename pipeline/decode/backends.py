"""Frames out of a local file: decord where it is right, PyAV where decord cannot or is wrong. Runs in a child process.

A probe without decoding settles which of the two reads a file, so the same bytes always take the same way: decord returns
wrong frames for HEVC and for files whose edit list hides some, and cannot open AV1 or GIF; PyAV takes what is left over.
Frames come in the order they are shown, of the best video stream, turned upright.

Shapes: N frames in the file, F sampled, H, W.
"""

import logging
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from pipeline.decode.config import DecodeConfig
from pipeline.decode.container import Probe, bad, check_pixels, opened, packets_of, probe, video_stream
from pipeline.decode.sampling import frame_indices
from pipeline.errors import VideoError
from pipeline.segments import Span

av.logging.set_level(av.logging.PANIC)
logger = logging.getLogger(__name__)

SEEK_ABOVE = 300
"""Longer videos, in frames, are not decoded from beginning to end if seeking gives the same frames."""
DECORD_CODECS = frozenset({"h264", "vp8", "vp9", "mpeg4"})
DECORD_FORMATS = frozenset({"yuv420p", "yuvj420p"})


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Sampled frames of one video."""

    frames: npt.NDArray[np.uint8]
    """(F, H, W, 3), RGB, upright."""
    timestamps_s: list[float]
    """Time of each since the first frame."""
    decoder: str
    """decord or pyav."""
    substituted: int
    """How many of the F repeat the frame before, for want of frames."""


def load_libraries() -> None:
    """Load what reading a clip would load, so that a memory limit set afterwards counts videos only."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)


def read_clip(path: Path, demuxer: str, config: DecodeConfig, span: Span | None = None) -> Clip:
    """Return the sampled frames of a video, or of the part between two times in seconds. Raises VideoError."""
    return VideoFile(path, demuxer, config).clip(span)


class VideoFile:
    """A local file of which parts are read, one after another: looked through once, not for every part.

    The clip of a part is the same whatever was read before it.
    """

    def __init__(self, path: Path, demuxer: str, config: DecodeConfig) -> None:
        self.path = path
        self.demuxer = demuxer
        self.config = config
        self.frames: int | None = None
        """How many frames come out when everything is decoded; None as long as nobody had to know."""
        self.walk: Walk | None = None

    @cached_property
    def probe(self) -> Probe:
        """What the container tells. Raises VideoError."""
        return probe(self.path, self.demuxer, self.config)

    def clip(self, span: Span | None = None) -> Clip:
        """Return the sampled frames of the video, or of the part between two times in seconds. Raises VideoError."""
        found = self.probe if span is None else replace(self.probe, window=_window(self.probe, span))
        if self.config.decoder == "pyav" or not _decord_is_right(found):
            long = found.packets > SEEK_ABOVE and not found.hidden and found.times
            return (long and _read_seeking(self.path, self.demuxer, found, self.config)) or self._in_order(found)
        try:
            return self._by_index(found)
        except VideoError:
            if self.config.decoder == "decord":
                raise
            return self._in_order(found)

    @cached_property
    def _decord(self) -> Any:
        """Return decord's reader, or the VideoError that says why there is none. Any: decord is untyped."""
        import decord

        load_libraries()
        try:
            reader = decord.VideoReader(str(self.path), ctx=decord.cpu(0), num_threads=1)
        except (decord.DECORDError, RuntimeError, IndexError) as error:
            return _decord_failed(error)
        if len(reader) != self.probe.packets:
            told = f"decord counts {len(reader)} frames, the container holds {self.probe.packets}"
            return VideoError("CORRUPT", told)
        return reader

    def _by_index(self, found: Probe) -> Clip:
        """Read with decord. Raises VideoError CORRUPT where it fails or counts other frames than the container holds."""
        import decord

        reader = self._decord
        if isinstance(reader, VideoError):
            raise reader
        wanted = _indices(found, len(reader), self.config)
        distinct = sorted(set(wanted))
        try:
            reader.seek(0)  # as a new reader stands
            frames = reader.get_batch(distinct).asnumpy()
            times = reader.get_frame_timestamp(distinct)[:, 0] - float(reader.get_frame_timestamp(0)[0])
        except (decord.DECORDError, RuntimeError, IndexError) as error:
            del self._decord
            raise _decord_failed(error) from error
        places = [distinct.index(index) for index in wanted]
        return _clip(frames[places], [float(times[place]) for place in places], "decord", wanted)

    def _in_order(self, found: Probe) -> Clip:
        """Decode in order. Everything the first time, and again if the count was not what the packets said."""
        if self.frames is None:
            clip, self.frames = _read_pyav(self.path, self.demuxer, found, self.config)
            return clip
        wanted = _indices(found, self.frames, self.config)
        if self.walk is None or self.walk.position > min(wanted):
            self.walk = Walk(self.path, self.demuxer)
        walk, self.walk = self.walk, None  # one that fails is not gone on with
        kept = walk.take(frozenset(wanted), self.config)
        self.walk = walk
        return _clip(np.stack([kept[index][0] for index in wanted]), [kept[index][1] for index in wanted], "pyav", wanted)


def _window(found: Probe, span: Span) -> tuple[int, int]:
    """Return the packets shown between two times; where no frame begins, the one that is still on the screen.

    Raises VideoError where the video has ended by then, or times are not known.
    """
    if not found.times:
        raise VideoError("CORRUPT", "a video without times of its own for each frame cannot be cut into segments")
    first, last = (bisect_left(found.times, found.times[0] + round(time / found.tick_s)) for time in span)
    if first < last:
        return first, last
    if span[0] > span[1] or span[0] > found.duration_s:
        raise VideoError("CORRUPT", f"no frame between {span[0]:g} and {span[1]:g} s")
    return max(first - 1, 0), max(first, 1)


def _indices(found: Probe, total: int, config: DecodeConfig) -> list[int]:
    """Return the frames of the clip, where `total` can be decoded."""
    first, last = found.window or (0, found.packets)
    first, last = (edge * total // max(found.packets, 1) for edge in (first, last))
    return [first + index for index in frame_indices(max(last - first, 1), config.frames, config.policy)]


def _decord_is_right(found: Probe) -> bool:
    return found.codec in DECORD_CODECS and found.pixel_format in DECORD_FORMATS and not found.hidden


def _decord_failed(error: Exception) -> VideoError:
    return VideoError("CORRUPT", str(error).strip().splitlines()[0][:200] if str(error) else "decord failed")


def _read_seeking(path: Path, demuxer: str, found: Probe, config: DecodeConfig) -> Clip | None:
    """Decode from the keyframes before the sampled frames; None where a frame does not come out at its time.

    The same frames as decoding everything, in a fraction of the time for a long video. Frames that refer back over a
    keyframe do not come out after a seek, a broken packet shifts what is counted, and a file without an index cannot be
    sought in: then everything is decoded.
    """
    wanted = _indices(found, found.packets, config)
    kept: dict[int, npt.NDArray[np.uint8]] = {}
    try:
        with opened(path, demuxer) as container:
            stream = video_stream(container)
            frames: Iterator[Any] = iter(())
            before: int | None = None
            for index in sorted(set(wanted)):
                time = found.times[index]
                if before is None or bisect_right(found.keys, time) > bisect_right(found.keys, before):
                    container.seek(time, stream=stream)
                    frames = _frames(container, stream, strict=True)
                frame = next((f for f in frames if f.pts is None or f.pts >= time), None)
                if frame is None or frame.pts != time:
                    return None
                kept[index] = _upright(frame, frame.width, frame.height)
                before = time
            base = stream.time_base
    except (av.error.FFmpegError, VideoError):
        return None
    if len({pixels.shape for pixels in kept.values()}) != 1:
        return None
    times = [float((found.times[index] - found.times[0]) * base) for index in wanted]
    return _clip(np.stack([kept[index] for index in wanted]), times, "pyav", wanted)


def _upright(frame: Any, width: int, height: int) -> npt.NDArray[np.uint8]:
    """Return RGB pixels (H, W, 3) of a frame, scaled to a size, turned as its metadata asks. Any: PyAV's compiled frame."""
    pixels = frame.reformat(width=width, height=height, format="rgb24").to_ndarray()
    return np.rot90(pixels, (frame.rotation // 90) % 4)


def _read_pyav(path: Path, demuxer: str, found: Probe, config: DecodeConfig) -> tuple[Clip, int]:
    """Decode everything in order; a second time if the count was not what the packets said. Returns the count as well."""
    total = max(found.packets, 1)
    for _ in range(2):
        wanted = _indices(found, total, config)
        walk = Walk(path, demuxer)
        kept = walk.take(frozenset(wanted), config, to_the_end=True)
        if walk.position == total:
            frames = np.stack([kept[index][0] for index in wanted])
            return _clip(frames, [kept[index][1] for index in wanted], "pyav", wanted), total
        if walk.position == 0:
            raise VideoError("CORRUPT", f"none of {found.packets} packets could be decoded")
        total = walk.position
    raise VideoError("CORRUPT", "the number of frames differs from one decoding to the next")


class Walk:
    """A file that is decoded from its beginning on, a part now and the next one later."""

    def __init__(self, path: Path, demuxer: str) -> None:
        self.container = opened(path, demuxer)
        self.stream = video_stream(self.container)
        self.decoded = _frames(self.container, self.stream)
        self.first_s = 0.0
        self.position = 0
        """Frames that have come out."""

    def take(
        self, wanted: frozenset[int], config: DecodeConfig, *, to_the_end: bool = False
    ) -> dict[int, tuple[npt.NDArray[np.uint8], float]]:
        """Go on to the last wanted frame, or to the end; returns the wanted ones with their times. Raises VideoError."""
        kept: dict[int, tuple[npt.NDArray[np.uint8], float]] = {}
        shape, last = None, max(wanted)
        while (to_the_end or self.position <= last) and (frame := next(self.decoded, None)) is not None:
            time_s = float((frame.pts or 0) * self.stream.time_base)
            self.first_s = time_s if self.position == 0 else self.first_s
            if self.position in wanted:
                check_pixels((frame.width, frame.height), config)
                shape = shape or (frame.width, frame.height)
                kept[self.position] = _upright(frame, *shape), time_s - self.first_s
            self.position += 1
        return kept


def _frames(container: Any, stream: Any, *, strict: bool = False) -> Iterator[Any]:
    """Yield decoded frames, going on after packets that cannot be decoded unless `strict`. Any: PyAV's types are compiled."""
    for packet in _packets_or_none(container, stream):
        try:
            yield from stream.codec_context.decode(packet)
        except av.error.FFmpegError as error:
            if strict or not isinstance(error, av.error.InvalidDataError):
                raise bad(error) from error


def _packets_or_none(container: Any, stream: Any) -> Iterator[Any]:
    """Yield the packets and then None, which makes the decoder give what it still holds."""
    yield from packets_of(container, stream)
    yield None


def _clip(frames: npt.NDArray[np.uint8], times_s: Sequence[float], decoder: str, wanted: Sequence[int]) -> Clip:
    repeated = len(wanted) - len(set(wanted))
    return Clip(frames=frames, timestamps_s=[round(t, 6) for t in times_s], decoder=decoder, substituted=repeated)


