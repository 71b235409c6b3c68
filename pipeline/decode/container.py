"""Containers: opened with one demuxer and no other, the video stream that a player would show, and limits.

No network, no further files, and no more than the limits of `DecodeConfig` allow.
"""

import errno
import logging
from collections.abc import Iterator, Sequence
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
FROM_ZERO = frozenset({"matroska", "flv"})
"""Formats that count their duration from time zero, which may be long before their first packet."""
STILLS = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails | av.stream.Disposition.still_image
"""Dispositions of streams that hold pictures about a video, and not the video."""


class Limits:
    """The limits of a `DecodeConfig` on what a container declares and holds. Each check raises VideoError TOO_LARGE."""

    def __init__(self, config: DecodeConfig) -> None:
        self.config = config

    def check_header(self, path: Path, demuxer: str) -> None:
        """Check the size in the file's header, before FFmpeg reads it."""
        with path.open("rb") as file:
            self.check_pixels(declared_pixels(file.read(HEADER_BYTES), demuxer))

    def check_stream(self, container: Any, stream: Any) -> None:
        """Check what the demuxer tells of a stream. Any: PyAV's types are compiled."""
        self.check_pixels((stream.codec_context.width, stream.codec_context.height))
        self.check_frames(stream.frames)
        begin_s = _seconds(container.start_time, av.time_base) if FROM_ZERO & set(container.format.name.split(",")) else 0.0
        self.check_duration(_seconds(container.duration, av.time_base) - max(begin_s, 0.0))
        self.check_duration(_seconds(stream.duration, stream.time_base))

    def check_pixels(self, size: tuple[int, int] | None) -> None:
        """Check width and height of a frame."""
        width, height = size or (0, 0)
        if self.config.max_pixels and width * height > self.config.max_pixels:
            raise VideoError("TOO_LARGE", f"{width} x {height} px, more than {self.config.max_pixels} in all")

    def check_frames(self, frames: int) -> None:
        """Check a number of frames."""
        if self.config.max_frames and frames > self.config.max_frames:
            raise VideoError("TOO_LARGE", f"{frames} frames or more, more than {self.config.max_frames}")

    def check_duration(self, length_s: float) -> None:
        """Check a length in seconds."""
        if self.config.max_duration_s and length_s > self.config.max_duration_s:
            raise VideoError("TOO_LARGE", f"{length_s:.0f} s long, more than {self.config.max_duration_s:g} s")

    def check_packets(self, times: Sequence[int | None], tick_s: Any) -> None:
        """Check the length that the packets' times span: the middle half, doubled, which no stray timestamp can change."""
        if not times:
            raise VideoError("CORRUPT", "the video stream holds no packet")
        known = sorted(time for time in times if time is not None)
        if known:
            self.check_duration(_seconds(2 * (known[3 * len(known) // 4] - known[len(known) // 4]), tick_s))


HARMLESS = ("mmco:", "number of reference frames")
"""Errors that FFmpeg logs for right frames too: behind a random-access point, pictures of before are taken out of use."""


class ErrorLog:
    """What FFmpeg logs as errors, which is all it tells of most damage."""

    def __init__(self) -> None:
        self.count = av.logging.get_last_error()[0]

    def news(self) -> str:
        """Return the last error since this was asked before; empty where there is none."""
        count, last = av.logging.get_last_error()
        if count == self.count or last is None:
            return ""
        self.count = count
        if last[2].startswith(HARMLESS):
            return ""
        return f"{last[1]}: {last[2].strip()}"[:120]


def opened(path: Path, demuxer: str) -> Any:
    """Open a container with one demuxer and no other. Any: PyAV's container types are compiled."""
    try:
        return av.open(str(path), format=demuxer, options=OPTIONS, metadata_errors="replace")
    except av.error.FFmpegError as error:
        raise bad(error, f"the {demuxer} container cannot be read: ") from error
    except ValueError as error:  # what PyAV raises for a demuxer that this build lacks
        raise VideoError("UNSUPPORTED_CODEC", str(error)) from error


def videos(container: Any) -> list[Any]:
    """Return the video streams, cover pictures and thumbnails left out. Any: PyAV's stream types are compiled."""
    return [stream for stream in container.streams.video if not stream.disposition & STILLS]


def video_stream(container: Any) -> Any:
    """Return the video stream that FFmpeg's player shows. Raises VideoError where there is none. Any: see `videos`."""
    found = videos(container)
    if not found:
        raise VideoError("NO_VIDEO_STREAM", "the file has no video stream")
    best = container.streams.best("video")
    stream = best if best in found else max(found, key=_preference)
    if stream.codec_context is None:
        raise VideoError("UNSUPPORTED_CODEC", "no decoder for the video stream")
    stream.thread_type = "NONE"  # frame threads drop frames beside a broken packet, and not always the same ones
    return stream


def _preference(stream: Any) -> tuple[bool, int, int]:
    """Return what FFmpeg compares: the default disposition, the bit rate, and the lower index. Any: PyAV's stream."""
    context = stream.codec_context
    return bool(stream.disposition & av.stream.Disposition.default), (context and context.bit_rate) or 0, -stream.index


def packets_of(container: Any, stream: Any, errors: list[str]) -> Iterator[Any]:
    """Yield the packets of a stream, or of all streams for None. Any: PyAV's types are compiled.

    A broken container ends there, and what FFmpeg says of it is appended to `errors`.
    """
    try:
        for packet in container.demux(*([] if stream is None else [stream])):
            if packet.size:
                yield packet
    except av.error.FFmpegError as error:
        if error.errno in OUT_OF_MEMORY:
            raise bad(error) from error
        errors.append(said(error))
        logger.debug("demuxing ended early: %s", said(error))
    except IndexError:  # PyAV looks a packet's stream up, and a damaged header may have made a new one
        errors.append("a packet of a stream that the header does not name")


def _seconds(ticks: int | None, base: Any) -> float:
    """Return a duration in seconds. Any: a time base is a fraction, or FFmpeg's own in ticks per second."""
    if not ticks or not base:
        return 0.0
    return float(ticks * base if base < 1 else ticks / base)


def bad(error: av.error.FFmpegError, where: str = "") -> VideoError:
    """Return the class of an error: memory that FFmpeg was refused is no fault of the file's form."""
    return VideoError("OUT_OF_MEMORY" if error.errno in OUT_OF_MEMORY else "CORRUPT", where + said(error))


def said(error: Exception) -> str:
    """Return the first line of what FFmpeg says, without the private path that a file has while it is decoded."""
    text = str(error).replace(f": {getattr(error, 'filename', None)!r}", "").strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
