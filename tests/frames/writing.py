"""Writing videos of numbered pictures with FFmpeg's own encoders and muxers, and changing their packets afterwards."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from tests.frames.numbered import picture

os.environ.setdefault("SVT_LOG", "0")
QUIET = {"libx264": {"x264-params": "log-level=-1"}, "libx265": {"x265-params": "log-level=none"}}


@dataclass(frozen=True, kw_only=True)
class Coding:
    """How pictures are coded."""

    encoder: str = "libx264"
    options: Mapping[str, str] = field(default_factory=dict)
    pixels: str = "yuv420p"
    rate: Fraction = Fraction(25)
    width: int = 96
    height: int = 64
    seed: int = 0
    first: int = 0
    """Number of the first picture."""
    private: str = ""
    """Parameters of libx264 or libx265 in their own notation."""


def write(
    path: Path,
    frames: int,
    coding: Coding | None = None,
    *,
    muxer: str | None = None,
    mux_options: Mapping[str, str] | None = None,
    times: Callable[[int], int] | None = None,
) -> Path:
    """Encode numbered pictures into a file; `times` gives each one's time in units of the frame duration."""
    coding = coding or Coding()
    with av.open(str(path), "w", format=muxer, options=dict(mux_options or {})) as container:
        stream = container.add_stream(coding.encoder, rate=coding.rate, options=_options(coding))
        stream.width, stream.height, stream.pix_fmt = coding.width, coding.height, coding.pixels
        for index in range(frames):
            pixels = picture(coding.first + index, coding.width, coding.height, coding.seed)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = (times or int)(index), 1 / coding.rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _options(coding: Coding) -> dict[str, str]:
    """Return the encoder's options, with private parameters joined to those that keep it quiet."""
    options = dict(coding.options)
    for key, value in QUIET.get(coding.encoder, {}).items():
        options[key] = ":".join(part for part in (value, coding.private) if part)
    return options


def remux(
    source: Path,
    target: Path,
    *,
    muxer: str | None = None,
    mux_options: Mapping[str, str] | None = None,
    change: Callable[[int, Any], bool] | None = None,
) -> Path:
    """Copy the packets of a file into another container; `change` may alter each, and tells whether it is kept."""
    with (
        av.open(str(source)) as inside,
        av.open(str(target), "w", format=muxer, options=dict(mux_options or {})) as outside,
    ):
        stream = inside.streams.video[0]
        copy = outside.add_stream_from_template(stream)
        for number, packet in enumerate(packet for packet in inside.demux(stream) if packet.size):
            if change is None or change(number, packet):
                packet.stream = copy
                outside.mux(packet)
    return target


def sequential(path: Path, *, from_key: bool = False) -> list[Any]:
    """Return every frame that FFmpeg shows when it decodes a file from its first packet to its last, as RGB pixels.

    `from_key`: without those before the first keyframe, which FFmpeg shows for MPEG-4 although their references are missing.
    """
    frames: list[Any] = []
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        stream.thread_type = "NONE"
        for packet in (*container.demux(stream), None):
            try:
                shown = stream.codec_context.decode(packet) if packet is None or packet.size else []
            except av.error.FFmpegError:
                continue
            for frame in shown:
                if frames or frame.key_frame or not from_key:
                    frames.append(frame.to_ndarray(format="rgb24"))
    return frames
