"""Ways to get a clip out of a file, each as its users write it, with one thread. Frames are (F, H, W, 3) uint8, RGB."""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from pipeline.corpus.fetch import HEAD_BYTES, demuxer_of
from pipeline.decode.config import DecodeConfig
from pipeline.decode.sampling import frame_indices
from pipeline.decode.video_file import read_clip

Frames = npt.NDArray[np.uint8]
Method = Callable[[Path, int], Frames]
"""A function of a path and the number of frames."""
EXACT, KEYFRAME, DECORD, TORCHCODEC = "framefold exact", "framefold keyframe", "decord", "torchcodec"
PYAV_SEEK, PYAV_SEQUENTIAL = "PyAV with seeking", "PyAV sequential"


class MissingLibraryError(Exception):
    """The library of a method cannot be loaded."""


def exact(path: Path, frames: int) -> Frames:
    """Return the clip as `framefold encode` decodes it: scan, plan, decode, prove."""
    return read_clip(path, _demuxer(path), DecodeConfig(frames=frames)).frames


def keyframe(path: Path, frames: int) -> Frames:
    """Return the same with `--policy keyframe`."""
    return read_clip(path, _demuxer(path), DecodeConfig(frames=frames, policy="keyframe")).frames


def raw_decord(path: Path, frames: int) -> Frames:
    """Return what `get_batch` gives."""
    import decord

    reader = decord.VideoReader(str(path), num_threads=1)
    return np.asarray(reader.get_batch(frame_indices(len(reader), frames)).asnumpy())


def pyav_seek(path: Path, frames: int) -> Frames:
    """Seek to the keyframe before each frame by its time, decode up to it."""
    with av.open(str(path)) as container:
        stream = _one_thread(container)
        start, rate = stream.start_time or 0, stream.average_rate
        shown = []
        for index in frame_indices(_count(path, stream), frames):
            target = start + round(index / rate / stream.time_base)
            container.seek(target, stream=stream)
            reached = (frame for frame in container.decode(stream) if frame.pts is not None and frame.pts >= target)
            shown.append(next(reached).to_ndarray(format="rgb24"))
        return np.stack(shown)


def pyav_sequential(path: Path, frames: int) -> Frames:
    """Decode from the beginning, as the documentation of transformers does."""
    with av.open(str(path)) as container:
        stream = _one_thread(container)
        indices = frame_indices(_count(path, stream), frames)
        kept: dict[int, Frames] = {}
        for index, frame in enumerate(container.decode(stream)):
            if index in indices:
                kept[index] = frame.to_ndarray(format="rgb24")
            if index >= indices[-1]:
                break
        return np.stack([kept[index] for index in indices])


def torchcodec(path: Path, frames: int) -> Frames:
    """Return the frames by index with `seek_mode="exact"`. The package is no dependency."""
    try:
        decoders = importlib.import_module("torchcodec.decoders")
    except (ImportError, RuntimeError, OSError) as error:  # RuntimeError: it finds no FFmpeg that it knows
        raise MissingLibraryError(f"{type(error).__name__}: {error}") from error
    decoder = decoders.VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
    return np.asarray(decoder.get_frames_at(frame_indices(len(decoder), frames)).data.numpy())


METHODS: dict[str, Method] = {
    EXACT: exact,
    KEYFRAME: keyframe,
    DECORD: raw_decord,
    PYAV_SEEK: pyav_seek,
    PYAV_SEQUENTIAL: pyav_sequential,
    TORCHCODEC: torchcodec,
}


def differing(ours: Frames, theirs: Frames) -> tuple[int, float]:
    """Return how many frames differ in any byte, and by how many levels on average the one that differs most."""
    if ours.shape != theirs.shape:
        return len(ours), float(np.iinfo(np.uint8).max)
    levels = [_levels(a, b) for a, b in zip(ours, theirs, strict=True)]
    return sum(level > 0 for level in levels), max(levels)


def _levels(a: Sequence[Any] | Frames, b: Sequence[Any] | Frames) -> float:
    return float(np.abs(np.subtract(a, b, dtype=np.int16)).mean())


def _demuxer(path: Path) -> str:
    with path.open("rb") as file:
        return demuxer_of(file.read(HEAD_BYTES))


def _one_thread(container: Any) -> Any:
    """Return the first video stream, decoded by one thread. Any: PyAV's types are compiled."""
    stream = container.streams.video[0]
    stream.codec_context.thread_count = 1
    return stream


def _count(path: Path, stream: Any) -> int:
    """Return the number of frames, by the header or by counting packets. Any: PyAV's types are compiled."""
    if stream.frames:
        return int(stream.frames)
    with av.open(str(path)) as container:
        return sum(packet.size > 0 for packet in container.demux(container.streams.video[0]))
