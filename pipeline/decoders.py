"""Frames out of a local file: decord where it is right, PyAV where decord cannot or is wrong. Runs in a child process.

A probe without decoding settles which of the two reads a file, so the same bytes always take the same way: decord returns
wrong frames for HEVC and for files whose edit list hides some, and cannot open AV1 or GIF; PyAV takes what is left over.
Frames come in the order they are shown, of the best video stream, turned upright.

Shapes: N frames in the file, F sampled, H, W.
"""

import errno
import logging
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from pipeline.decode import DecodeConfig
from pipeline.errors import VideoError
from pipeline.headers import declared_pixels
from pipeline.sampling import frame_indices
from pipeline.segments import Span

av.logging.set_level(av.logging.PANIC)
logger = logging.getLogger(__name__)

OPTIONS = {"protocol_whitelist": "file", "enable_drefs": "0", "max_streams": "64"}
"""For every demuxer: no network, no references to other files."""
HEADER_BYTES = 1 << 20
"""How far into a file its declared size is looked for."""
OUT_OF_MEMORY = (errno.ENOMEM, errno.EAGAIN)
"""FFmpeg's scaler says EAGAIN where memory for the stack of a thread is refused."""
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
    window: tuple[int, int] | None = None
    """First packet of the part that is asked for and the one after its last; None is everything."""

    @property
    def duration_s(self) -> float:
        """Return the time from the first frame to the end of the last, which is taken to last as long as the mean."""
        shown = (self.times[-1] - self.times[0]) * self.tick_s if self.times else 0.0
        return shown * len(self.times) / max(len(self.times) - 1, 1)


def load_libraries() -> None:
    """Load what reading a clip would load, so that a memory limit set afterwards counts videos only."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)


def read_clip(path: Path, demuxer: str, config: DecodeConfig, span: Span | None = None) -> Clip:
    """Return the sampled frames of a video, or of the part between two times in seconds. Raises VideoError."""
    found = probe(path, demuxer, config)
    if span is not None:
        found = replace(found, window=_window(found, span))
    if config.decoder == "pyav" or not _decord_is_right(found):
        long = found.packets > SEEK_ABOVE and not found.hidden and found.times
        return (long and _read_seeking(path, demuxer, found, config)) or _read_pyav(path, demuxer, found, config)
    try:
        return _read_decord(path, found, config)
    except VideoError:
        if config.decoder == "decord":
            raise
        return _read_pyav(path, demuxer, found, config)


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


def probe(path: Path, demuxer: str, config: DecodeConfig) -> Probe:
    """Look at a file's best video stream and check its limits, before anything is decoded. Raises VideoError."""
    with path.open("rb") as file:
        _check_pixels(declared_pixels(file.read(HEADER_BYTES), demuxer), config)
    with _opened(path, demuxer) as container:
        stream = _video_stream(container)
        _check_pixels((stream.codec_context.width, stream.codec_context.height), config)
        _check_frames(stream.frames, config)
        for length_s in (_seconds(container.duration, av.time_base), _seconds(stream.duration, stream.time_base)):
            _check_duration(length_s, config)
        return _counted(container, stream, config)


def _check_pixels(size: tuple[int, int] | None, config: DecodeConfig) -> None:
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
    for packet in _packets(container, stream):
        counts[packet.is_discard] += 1
        times += [] if packet.is_discard else [packet.pts]
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
    )


def _decord_is_right(found: Probe) -> bool:
    return found.codec in DECORD_CODECS and found.pixel_format in DECORD_FORMATS and not found.hidden


def _opened(path: Path, demuxer: str) -> Any:
    """Open a container with one demuxer and no other. Any: PyAV's container types are compiled."""
    try:
        return av.open(str(path), format=demuxer, options=OPTIONS, metadata_errors="replace")
    except av.error.FFmpegError as error:
        raise _bad(error, f"the {demuxer} container cannot be read: ") from error
    except ValueError as error:  # what PyAV raises for a demuxer that this build lacks
        raise VideoError("UNSUPPORTED_CODEC", str(error)) from error


def _video_stream(container: Any) -> Any:
    """Return the best video stream; cover pictures of audio files are none. Any: PyAV's stream types are compiled."""
    stream = container.streams.best("video")
    if stream is None or (stream.disposition & av.stream.Disposition.attached_pic):
        raise VideoError("NO_VIDEO_STREAM", "the file has no video stream")
    if stream.codec_context is None:
        raise VideoError("UNSUPPORTED_CODEC", "no decoder for the video stream")
    stream.thread_type = "NONE"  # frame threads drop frames beside a broken packet, and not always the same ones
    return stream


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    """Yield the packets of a stream; a broken container ends there."""
    try:
        for packet in container.demux(stream):
            if packet.size:
                yield packet
    except av.error.FFmpegError as error:
        if error.errno in OUT_OF_MEMORY:
            raise _bad(error) from error
        logger.debug("demuxing ended early: %s", _said(error))


def _seconds(ticks: int | None, base: Any) -> float:
    """Return a duration in seconds. Any: a time base is a fraction, or FFmpeg's own in ticks per second."""
    if not ticks or not base:
        return 0.0
    return float(ticks * base if base < 1 else ticks / base)


def _read_decord(path: Path, found: Probe, config: DecodeConfig) -> Clip:
    """Read by index. Raises VideoError CORRUPT where decord fails or counts other frames than the container holds."""
    import decord

    load_libraries()
    try:
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        if len(reader) != found.packets:
            raise VideoError("CORRUPT", f"decord counts {len(reader)} frames, the container holds {found.packets}")
        wanted = _indices(found, len(reader), config)
        distinct = sorted(set(wanted))
        frames = reader.get_batch(distinct).asnumpy()
        times = reader.get_frame_timestamp(distinct)[:, 0] - float(reader.get_frame_timestamp(0)[0])
    except (decord.DECORDError, RuntimeError, IndexError) as error:
        raise VideoError("CORRUPT", str(error).strip().splitlines()[0][:200] if str(error) else "decord failed") from error
    places = [distinct.index(index) for index in wanted]
    return _clip(frames[places], [float(times[place]) for place in places], "decord", wanted)


def _read_seeking(path: Path, demuxer: str, found: Probe, config: DecodeConfig) -> Clip | None:
    """Decode from the keyframe before each sampled frame; None where a frame does not come out at its time.

    The same frames as decoding everything, in a fraction of the time for a long video. Frames that refer back over a
    keyframe do not come out after a seek, a broken packet shifts what is counted, and a file without an index cannot be
    sought in: then everything is decoded.
    """
    wanted = _indices(found, found.packets, config)
    kept: dict[int, npt.NDArray[np.uint8]] = {}
    try:
        with _opened(path, demuxer) as container:
            stream = _video_stream(container)
            for index in sorted(set(wanted)):
                container.seek(found.times[index], stream=stream)
                frames = _frames(container, stream, strict=True)
                frame = next((f for f in frames if f.pts is None or f.pts >= found.times[index]), None)
                if frame is None or frame.pts != found.times[index]:
                    return None
                kept[index] = _upright(frame, frame.width, frame.height)
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


def _read_pyav(path: Path, demuxer: str, found: Probe, config: DecodeConfig) -> Clip:
    """Decode everything in order and keep the sampled frames; a second time if the count was not what the packets said."""
    total = max(found.packets, 1)
    for _ in range(2):
        wanted = _indices(found, total, config)
        kept, counted = _decode(path, demuxer, frozenset(wanted), config)
        if counted == total:
            frames = np.stack([kept[index][0] for index in wanted])
            return _clip(frames, [kept[index][1] for index in wanted], "pyav", wanted)
        if counted == 0:
            raise VideoError("CORRUPT", f"none of {found.packets} packets could be decoded")
        total = counted
    raise VideoError("CORRUPT", "the number of frames differs from one decoding to the next")


def _decode(
    path: Path, demuxer: str, wanted: frozenset[int], config: DecodeConfig
) -> tuple[dict[int, tuple[npt.NDArray[np.uint8], float]], int]:
    """Return the wanted frames with their times, and how many there are in all."""
    kept: dict[int, tuple[npt.NDArray[np.uint8], float]] = {}
    counted, first_s, shape = 0, 0.0, None
    with _opened(path, demuxer) as container:
        stream = _video_stream(container)
        for frame in _frames(container, stream):
            time_s = float((frame.pts or 0) * stream.time_base)
            first_s = time_s if counted == 0 else first_s
            if counted in wanted:
                _check_pixels((frame.width, frame.height), config)
                shape = shape or (frame.width, frame.height)
                kept[counted] = _upright(frame, *shape), time_s - first_s
            counted += 1
    return kept, counted


def _frames(container: Any, stream: Any, *, strict: bool = False) -> Iterator[Any]:
    """Yield decoded frames, going on after packets that cannot be decoded unless `strict`. Any: PyAV's types are compiled."""
    for packet in _packets_or_none(container, stream):
        try:
            yield from stream.codec_context.decode(packet)
        except av.error.FFmpegError as error:
            if strict or not isinstance(error, av.error.InvalidDataError):
                raise _bad(error) from error


def _packets_or_none(container: Any, stream: Any) -> Iterator[Any]:
    """Yield the packets and then None, which makes the decoder give what it still holds."""
    yield from _packets(container, stream)
    yield None


def _clip(frames: npt.NDArray[np.uint8], times_s: Sequence[float], decoder: str, wanted: Sequence[int]) -> Clip:
    repeated = len(wanted) - len(set(wanted))
    return Clip(frames=frames, timestamps_s=[round(t, 6) for t in times_s], decoder=decoder, substituted=repeated)


def _bad(error: av.error.FFmpegError, where: str = "") -> VideoError:
    """Return the class of an error: memory that FFmpeg was refused is no fault of the file's form."""
    return VideoError("OUT_OF_MEMORY" if error.errno in OUT_OF_MEMORY else "CORRUPT", where + _said(error))


def _said(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
