"""Decoding with PyAV: the runs of a plan, or everything in order. Each frame is known by the packet it came from.

Labels travel with the packets (`copy_opaque`), because frames of many files have no usable times.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import av

from pipeline.decode.container import ErrorLog, Limits, bad, opened, said
from pipeline.decode.order import DisplayOrder
from pipeline.decode.plan import Run
from pipeline.decode.scan import Scan, packets_again
from pipeline.errors import VideoError

REFUSED_MEMORY = ("get_buffer() failed", "Cannot allocate memory")
"""What FFmpeg logs where memory is refused and it goes on without a frame."""


class UnprovenError(Exception):
    """A run did not give the frames that its plan promised."""


@dataclass
class Output:
    """One frame that came out of the decoder."""

    packet: int
    """The packet it came from."""
    pts: int | None
    corrupt: bool
    """FFmpeg's own flag: damaged slices, missing references, or a damaged packet."""


class _Decoder:
    """FFmpeg's decoder of one stream, with labelled packets. Any: PyAV's types are compiled."""

    def __init__(self, scanned: Scan) -> None:
        fresh = scanned.opened.pop() if scanned.opened else opened(scanned.path, scanned.demuxer)
        self.container = fresh  # the context lives as long as its container
        self.context: Any = fresh.streams[scanned.stream_index].codec_context
        self.context.thread_type = "NONE"  # frame threads drop frames beside a broken packet, and not always the same ones
        self.context.copy_opaque = True
        self.is_read, self.packets = not scanned.unread, scanned.packets
        self.log = ErrorLog()
        self.complaint = ""
        """The error that FFmpeg logged for the last packet."""

    def feed(self, packet: Any, number: int) -> list[Any]:
        """Return the frames that come out for one packet. Raises FFmpegError."""
        packet.opaque = [number]  # a new object each time: PyAV tells them apart by identity
        is_message = self.is_read and self.packets[number].is_message
        try:
            frames = list(self.context.decode(packet))
        except av.error.InvalidDataError:
            if not is_message:
                raise
            frames = []  # FFmpeg misses a picture in it
        self.complaint = "" if is_message else self.log.news()
        self.log.news()
        if any(words in self.complaint for words in REFUSED_MEMORY):
            raise VideoError("OUT_OF_MEMORY", self.complaint)
        return frames

    def drain(self) -> list[Any]:
        """Return the frames that the decoder still holds, and make it ready for another start."""
        frames = list(self.context.decode(None))
        self.complaint = self.log.news()
        self.context.flush_buffers()
        return frames


def read_runs(scanned: Scan, order: DisplayOrder, runs: Sequence[Run], limits: Limits) -> dict[int, Any]:
    """Return the frames of all targets, by packet number. Any: PyAV's frames are compiled.

    Raises:
        UnprovenError: a packet was refused, a frame is flagged, missing, or comes out of turn.
        VideoError: TOO_LARGE, OUT_OF_MEMORY.
    """
    decoder, kept = _Decoder(scanned), {}
    packets = enumerate(packets_again(scanned))
    for run in runs:
        last_rank = -1
        for frame in _frames_of(decoder, packets, run):
            last_rank = _checked_rank(frame, order, last_rank)
            if frame.opaque[0] in run.targets:
                limits.check_pixels((frame.width, frame.height))
                kept[frame.opaque[0]] = frame
        if missing := set(run.targets) - kept.keys():
            raise UnprovenError(f"no frame came out for packet {min(missing)}")
    return kept


def _frames_of(decoder: _Decoder, packets: Iterator[tuple[int, Any]], run: Run) -> Iterator[Any]:
    """Yield the frames of a run. Raises UnprovenError where the decoder refuses a packet. Any: PyAV's frames."""
    fed = iter(run.packets)
    following = next(fed, None)
    try:
        for number, packet in packets:
            if number == following:
                yield from _uncomplaining(decoder, decoder.feed(packet, number), number)
                following = next(fed, None)
            if following is None:
                break
        yield from _uncomplaining(decoder, decoder.drain(), run.end)
    except av.error.FFmpegError as error:
        wrong = bad(error)
        raise (wrong if wrong.code == "OUT_OF_MEMORY" else UnprovenError(wrong.detail)) from error


def _uncomplaining(decoder: _Decoder, frames: list[Any], number: int) -> list[Any]:
    """Return frames of a packet for which FFmpeg logged no error. Raises UnprovenError. Any: PyAV's frames."""
    if decoder.complaint:
        raise UnprovenError(f"packet {number}: {decoder.complaint}")
    return frames


def _checked_rank(frame: Any, order: DisplayOrder, last_rank: int) -> int:
    """Return the place of a frame in display order. Raises UnprovenError where it is flagged or out of turn."""
    label = frame.opaque[0] if frame.opaque else -1
    rank = order.ranks.get(label, -1)
    if frame.is_corrupt:
        raise UnprovenError(f"the frame of packet {label} is flagged as corrupt")
    if rank <= last_rank:
        raise UnprovenError(f"the frame of packet {label} came out of turn")
    return rank


class Walk:
    """A file that is decoded from its first random-access point on, a part now and the next one later."""

    def __init__(self, scanned: Scan, limits: Limits) -> None:
        self.limits = limits
        self.outputs: list[Output] = []
        """Every frame so far, in the order they came out."""
        self.failed: dict[int, str] = {}
        """Packets that the decoder refused, with what it said."""
        self.complaints: dict[int, str] = {}
        """Packets that it took with an error in the log."""
        self._frames = self._decoded(scanned)

    def take(self, places: Collection[int], *, to_the_end: bool = False) -> dict[int, Any]:
        """Go on to the last wanted output, or to the end; returns the wanted frames by place. Any: PyAV's frames.

        Raises:
            VideoError: TOO_LARGE, OUT_OF_MEMORY.
        """
        kept: dict[int, Any] = {}
        last = max(places, default=-1)
        while (to_the_end or len(self.outputs) <= last) and (frame := next(self._frames, None)) is not None:
            place = len(self.outputs)
            self.outputs.append(Output(frame.opaque[0] if frame.opaque else -1, frame.pts, frame.is_corrupt))
            if place in places:
                self.limits.check_pixels((frame.width, frame.height))
                kept[place] = frame
        return kept

    def _decoded(self, scanned: Scan) -> Iterator[Any]:
        """Yield all frames, going on after packets that are refused."""
        decoder, number = _Decoder(scanned), 0
        for number, packet in enumerate(packets_again(scanned)):
            if number >= scanned.first_start:
                yield from self._noted(decoder, partial(decoder.feed, packet, number), number)
        yield from self._noted(decoder, decoder.drain, number)

    def _noted(self, decoder: _Decoder, decode: Callable[[], list[Any]], number: int) -> list[Any]:
        """Return what comes out, and note what the decoder says of the packet. Any: PyAV's frames."""
        try:
            frames = decode()
            if decoder.complaint:
                self.complaints[number] = decoder.complaint
            return frames
        except av.error.FFmpegError as error:
            if (wrong := bad(error)).code == "OUT_OF_MEMORY":
                raise wrong from error
            self.failed[number] = said(error)
            return []
