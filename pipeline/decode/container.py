"""Containers: opened with one demuxer and no other, and what they tell before anything is decoded.

No network, no further files, and no more than the limits of `DecodeConfig` allow.
"""

import errno
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av

from pipeline.decode.config import DecodeConfig
from pipeline.decode.headers import declared_pixels
from pipeline.errors import VideoError

av.logging.set_level(av.logging.PANIC)
logger = logging.getLogger(__name__)

OPTIONS = {"protocol_whitelist": "file", "enable_drefs": "0", "max_streams": "64"}
"""For every demuxer: no network, no references to other files."""
HEADER_BYTES = 1 << 20
"""How far into a file its declared size is looked for."""
OUT_OF_MEMORY = (errno.ENOMEM, errno.EAGAIN)
"""FFmpeg's scaler says EAGAIN where memory for the stack of a thread is refused."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What the container tells without decoding."""

    codec: str
    pixel_format: str
    packets: int
    """Packets of the stream that hold something to show."""
    hidden: int
    """Packets that an edit list hides."""
    times: tuple[int, ...]
    """Presentation times of the shown packets in stream ticks, rising; empty where some have none or share one."""
    tick_s: float
    """Seconds in a tick."""
    keys: tuple[int, ...] = ()
    """Times, rising, at which a seek may change the packet it lands on: when those that decoding can begin with are shown, and
    when they are decoded, as some containers look for one and some for the other."""
    window: tuple[int, int] | None = None
    """First packet of the part that is asked for and the one after its last; None is everything."""

    @property
    def duration_s(self) -> float:
        """Return the time from the first frame to the end of the last, which is taken to last as long as the mean."""
        shown = (self.times[-1] - self.times[0]) * self.tick_s if self.times else 0.0
        return shown * len(self.times) / max(len(self.times) - 1, 1)


def probe(path: Path, demuxer: str, config: DecodeConfig) -> Probe:
    """Look at a file's best video stream and check its limits, before anything is decoded. Raises VideoError."""
    with path.open("rb") as file:
        check_pixels(declared_pixels(file.read(HEADER_BYTES), demuxer), config)
    with opened(path, demuxer) as container:
        stream = video_stream(container)
        check_pixels((stream.codec_context.width, stream.codec_context.height), config)
        _check_frames(stream.frames, config)
        for length_s in (_seconds(container.duration, av.time_base), _seconds(stream.duration, stream.time_base)):
            _check_duration(length_s, config)
        return _counted(container, stream, config)


def check_pixels(size: tuple[int, int] | None, config: DecodeConfig) -> None:
    """Raise VideoError TOO_LARGE for a frame of more pixels than allowed."""
    width, height = size or (0, 0)
    if config.max_pixels and width * height > config.max_pixels:
        raise VideoError("TOO_LARGE", f"{width} x {height} px, more than {config.max_pixels} in all")


def _check_frames(frames: int, config: DecodeConfig) -> None:
    if config.max_frames and frames > config.max_frames:
        raise VideoError("TOO_LARGE", f"{frames} frames or more, more than {config.max_frames}")


def _check_duration(length_s: float, config: DecodeConfig) -> None:
    if config.max_duration_s and length_s > config.max_duration_s:
        raise VideoError("TOO_LARGE", f"{length_s:.0f} s long, more than {config.max_duration_s:g} s")


def _counted(container: Any, stream: Any, config: DecodeConfig) -> Probe:
    """Count the packets of a stream. Any: PyAV's types are compiled."""
    counts: Counter[bool] = Counter()
    times: list[int | None] = []
    keys: list[int] = []
    for packet in packets_of(container, stream):
        counts[packet.is_discard] += 1
        times += [] if packet.is_discard else [packet.pts]
        keys += [time for time in (packet.pts, packet.dts) if packet.is_keyframe and time is not None]
        _check_frames(len(times), config)
    if not counts:
        raise VideoError("CORRUPT", "the video stream holds no packet")
    known = sorted(time for time in times if time is not None)
    if known:  # the middle half, doubled: what a header does not tell, and no stray timestamp can
        _check_duration(_seconds(2 * (known[3 * len(known) // 4] - known[len(known) // 4]), stream.time_base), config)
    return Probe(
        codec=stream.codec_context.name,
        pixel_format=stream.codec_context.pix_fmt or "",
        packets=counts[False],
        hidden=counts[True],
        times=tuple(known) if len(set(known)) == len(times) else (),
        tick_s=float(stream.time_base or 0),
        keys=tuple(sorted(keys)),
    )


def opened(path: Path, demuxer: str) -> Any:
    """Open a container with one demuxer and no other. Any: PyAV's container types are compiled."""
    try:
        return av.open(str(path), format=demuxer, options=OPTIONS, metadata_errors="replace")
    except av.error.FFmpegError as error:
        raise bad(error, f"the {demuxer} container cannot be read: ") from error
    except ValueError as error:  # what PyAV raises for a demuxer that this build lacks
        raise VideoError("UNSUPPORTED_CODEC", str(error)) from error


def video_stream(container: Any) -> Any:
    """Return the best video stream; cover pictures of audio files are none. Any: PyAV's stream types are compiled."""
    stream = container.streams.best("video")
    if stream is None or (stream.disposition & av.stream.Disposition.attached_pic):
        raise VideoError("NO_VIDEO_STREAM", "the file has no video stream")
    if stream.codec_context is None:
        raise VideoError("UNSUPPORTED_CODEC", "no decoder for the video stream")
    stream.thread_type = "NONE"  # frame threads drop frames beside a broken packet, and not always the same ones
    return stream


def packets_of(container: Any, stream: Any) -> Iterator[Any]:
    """Yield the packets of a stream; a broken container ends there."""
    try:
        for packet in container.demux(stream):
            if packet.size:
                yield packet
    except av.error.FFmpegError as error:
        if error.errno in OUT_OF_MEMORY:
            raise bad(error) from error
        logger.debug("demuxing ended early: %s", said(error))


def _seconds(ticks: int | None, base: Any) -> float:
    """Return a duration in seconds. Any: a time base is a fraction, or FFmpeg's own in ticks per second."""
    if not ticks or not base:
        return 0.0
    return float(ticks * base if base < 1 else ticks / base)


def bad(error: av.error.FFmpegError, where: str = "") -> VideoError:
    """Return the class of an error: memory that FFmpeg was refused is no fault of the file's form."""
    return VideoError("OUT_OF_MEMORY" if error.errno in OUT_OF_MEMORY else "CORRUPT", where + said(error))


def said(error: Exception) -> str:
    """Return the first line of what FFmpeg says."""
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
