"""The packets of a video stream, read once without decoding: times, flags, and what each says of its picture.

Nothing here trusts the container: its keyframe flags are not used where the bitstream is read, and its times only where they
agree with the bitstream.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import av

from pipeline.decode.bitstream.parsers import parser_of
from pipeline.decode.bitstream.picture import BitstreamParser, DamagedBitstreamError, Picture, UnreadableBitstreamError
from pipeline.decode.config import DecodeConfig
from pipeline.decode.container import ErrorLog, Limits, opened, packets_of, video_stream, videos
from pipeline.decode.integrity import declared_size
from pipeline.decode.structure import first_break

LARGEST_WITHOUT_PICTURE = 64
"""Bytes; longer packets hold more than the end of a sequence, a delimiter or a message."""
KEPT_BYTES = 32 << 20
"""Packets of streams up to this size stay in memory between reading and decoding."""


@dataclass(slots=True)
class Packet:
    """One packet of the video stream."""

    pts: int | None
    dts: int | None
    bytes: int
    key: bool
    """What the container says; nothing follows from it where the bitstream is read."""
    discard: bool
    """An edit list hides what it shows."""
    corrupt: bool
    """The demuxer noticed a loss."""
    picture: Picture | None
    damage: str = ""
    """What is wrong with its headers."""
    loss: str = ""
    """What the demuxer says is wrong at or before it."""

    @property
    def is_message(self) -> bool:
        """Whether it holds parameter sets or messages alone, as far as its bitstream is read."""
        return self.picture is None and not self.damage


@dataclass(frozen=True, kw_only=True)
class Scan:
    """A video stream without its pictures."""

    path: Path
    demuxer: str
    stream_index: int
    streams: int
    """Video streams in the file, cover pictures not counted."""
    codec: str
    pixel_format: str
    size: tuple[int, int]
    """Width and height in pixels, as coded."""
    tick_s: Fraction
    rate: Fraction | None
    """Frames per second, as the container or the codec tells."""
    packets: tuple[Packet, ...]
    unread: str
    """Why the bitstream is not read; empty where it is."""
    ended: str
    """What stopped the demuxer before the end; empty where nothing did."""
    declared_frames: int
    """How many frames the stream has by the header; 0 where that is not told."""
    declared_s: float
    """How long the stream is by the header, in seconds; 0 where that is not told."""
    covered_s: float
    """Time from the first packet of the video to the end of whichever stream ends last: sound and subtitles may go on."""
    missing_bytes: int
    """How much shorter the file is than its own header says."""
    broken_at: int = -1
    """Byte at which the container's elements do not follow one another; -1 where they do."""
    kept: tuple[Any, ...] = field(default=(), repr=False, compare=False)
    """The packets themselves, for small files. Any: PyAV's packets are compiled."""
    opened: list[Any] = field(default_factory=list, repr=False, compare=False)
    """The container while its decoder is unused: taken by whoever decodes first. Any: PyAV's containers are compiled."""

    @cached_property
    def first_start(self) -> int:
        """Return the first packet at which decoding can begin; 0 where none is known."""
        return next((number for number, packet in enumerate(self.packets) if packet.picture and packet.picture.start), 0)

    @property
    def damaged(self) -> bool:
        """Whether packets are missing or contradict themselves, from the first start on."""
        behind = self.packets[self.first_start :]
        return self.broken_at >= 0 or any(p.damage or p.corrupt or p.loss or (p.picture and p.picture.gap) for p in behind)


def scan(path: Path, demuxer: str, config: DecodeConfig) -> Scan:
    """Read all packets of a file's default video stream. Raises VideoError where there is none, or a limit is passed."""
    limits = Limits(config)
    limits.check_header(path, demuxer)
    container = opened(path, demuxer)
    stream = video_stream(container)
    limits.check_stream(container, stream)
    reader = _Reader(container, stream, limits)
    reader.read()
    context = stream.codec_context
    return Scan(
        path=path,
        demuxer=demuxer,
        stream_index=stream.index,
        streams=len(videos(container)),
        codec=context.codec.canonical_name,
        pixel_format=context.pix_fmt or "",
        size=(context.width, context.height),
        tick_s=Fraction(stream.time_base or 0),
        rate=_rate(stream),
        packets=tuple(reader.packets),
        unread=reader.unread,
        ended=reader.ended,
        declared_frames=stream.frames,
        declared_s=_declared_s(container, stream),
        covered_s=reader.covered_s,
        missing_bytes=max(0, declared_size(path, demuxer) - path.stat().st_size),
        broken_at=first_break(path, demuxer),
        kept=tuple(reader.kept),
        opened=[container] if reader.kept else [],
    )


class _Reader:
    """Takes packets as they come. Any: PyAV's types are compiled."""

    def __init__(self, container: Any, stream: Any, limits: Limits) -> None:
        self.container, self.stream, self.limits = container, stream, limits
        context = stream.codec_context
        self.parser: BitstreamParser | None = parser_of(
            context.codec.canonical_name,
            intra_only=context.codec.intra_only,
            extradata=bytes(context.extradata or b""),
        )
        self.unread = "" if self.parser else f"the codec {context.codec.canonical_name} is not read"
        self.packets: list[Packet] = []
        self.kept: list[Any] = []
        self.kept_bytes = 0
        self.ended = ""
        self.began = False
        self.others_end_s = 0.0
        """When the last packet of another stream ends: sound, subtitles."""

    def read(self) -> None:
        """Take all packets. Raises VideoError."""
        errors: list[str] = []
        log = ErrorLog()
        for packet in packets_of(self.container, None, errors):
            if packet.stream_index != self.stream.index:
                self._note_end(packet)
                continue
            self.packets.append(self._packet(packet, log.news()))
            self.limits.check_frames(len(self.packets))
            self._keep(packet)
        self.ended = errors[0] if errors else log.news()
        _forgive_messages(self.packets)
        self.limits.check_packets([packet.pts for packet in self.packets], self.stream.time_base)

    @property
    def covered_s(self) -> float:
        """Return how long the streams are by their packets, from the first of the video to the last of all to end."""
        begin_s, end_s = _first_and_last_s(self.packets, self.stream)
        return max(end_s, self.others_end_s) - begin_s

    def _note_end(self, packet: Any) -> None:
        if packet.pts is not None and packet.time_base:
            self.others_end_s = max(self.others_end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))

    def _packet(self, packet: Any, loss: str) -> Packet:
        picture, damage = None, ""
        if self.parser is not None and not self.unread:
            try:
                picture = self.parser.picture(bytes(packet))
                self.began = self.began or (picture is not None and picture.start)
            except DamagedBitstreamError as error:
                damage = str(error)
            except UnreadableBitstreamError as error:
                self.unread = str(error)
            except IndexError:
                damage = "a header ends early"
            if picture is None and not self.unread and self.began and packet.size > LARGEST_WITHOUT_PICTURE:
                damage = damage or "the packet holds no picture"
        return Packet(
            pts=packet.pts,
            dts=packet.dts,
            bytes=packet.size,
            key=packet.is_keyframe,
            discard=packet.is_discard,
            corrupt=packet.is_corrupt,
            picture=picture,
            damage=damage,
            loss=loss,
        )

    def _keep(self, packet: Any) -> None:
        """Keep a packet, or let all of them go where they are too many bytes."""
        self.kept_bytes += packet.size
        if self.kept_bytes <= KEPT_BYTES:
            self.kept.append(packet)
        else:
            self.kept = []


def _forgive_messages(packets: list[Packet]) -> None:
    """Take back what FFmpeg logs of a packet that holds a message alone, as ASF does of recovery points: it names its size."""
    for packet, following in pairwise(packets):
        for at in (packet, following):
            if at.loss.endswith(f"missing picture in access unit with size {following.bytes}") and following.is_message:
                at.loss = ""


def packets_again(scanned: Scan) -> Iterator[Any]:
    """Yield the packets once more, from memory or from the file. Any: PyAV's packets are compiled."""
    if scanned.kept:
        yield from scanned.kept
        return
    container = opened(scanned.path, scanned.demuxer)
    yield from packets_of(container, container.streams[scanned.stream_index], [])


def _rate(stream: Any) -> Fraction | None:
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate and 0 < rate <= 1000:
            return Fraction(rate)
    return None


def _declared_s(container: Any, stream: Any) -> float:
    """Return the length that the header declares; the container's holds for all streams together."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    start_s = max(0.0, float((stream.start_time or 0) * (stream.time_base or 0)))  # Matroska and FLV count from zero on
    return container.duration / av.time_base - start_s if container.duration else 0.0


def _first_and_last_s(packets: list[Packet], stream: Any) -> tuple[float, float]:
    times = [packet.pts if packet.pts is not None else packet.dts for packet in packets]
    known = [time for time in times if time is not None]
    if not known or not stream.time_base:
        return 0.0, 0.0
    return float(min(known) * stream.time_base), float(max(known) * stream.time_base)
