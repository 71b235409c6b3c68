"""Facts about a video, told by the process that decodes it: what the packets say and the plan, then what decoding gave."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.corpus.span import Span
from pipeline.decode.facts import ClipFacts, Damage, Hidden, Part, PlannedRun, RandomAccess, StreamFacts
from pipeline.decode.order import DisplayOrder
from pipeline.decode.orientation import display_matrix
from pipeline.decode.plan import runs_for
from pipeline.decode.proof import GAP
from pipeline.decode.reader import UnprovenError, Walk, read_runs
from pipeline.decode.scan import Packet, Scan
from pipeline.decode.timeline import LOST, Timeline
from pipeline.decode.video_file import Clip, Sample, VideoFile, available
from pipeline.errors import VideoError

FIRST = 5
"""How many packets are named of each kind."""
MESSAGE_CHARS = 200
ORDERS = {
    **dict.fromkeys(("h264", "hevc"), "picture order counts of the bitstream"),
    **dict.fromkeys(("mpeg4", "mpeg2video", "mpeg1video"), "picture types of the bitstream: B pictures at once, others later"),
}
PACKET_ORDER = "the order of the packets"
IN_ORDER = "decoding everything"
QUARTER = 90
NO_FRAMES = np.empty((0, 0, 0, 3), dtype=np.uint8)


def describe(
    file: VideoFile, part: Part, span: Span | None, box_px: int
) -> tuple[StreamFacts | ClipFacts, npt.NDArray[np.uint8]]:
    """Return what is known of a stream, or of its clip with the frames within a box, (F, H, W, 3). Raises VideoError."""
    if part == "stream":
        return stream_facts(file, span), NO_FRAMES
    return clip_facts(file, span, box_px)


def stream_facts(file: VideoFile, span: Span | None) -> StreamFacts:
    """Return what the packets of a video tell, and the plan for its clip. Nothing is decoded. Raises VideoError."""
    scan, order = file.scan, file.order
    known = order if isinstance(order, DisplayOrder) else None
    sample = _planned_sample(file, span)
    timeline = file.planned
    pts = [packet.pts for packet in scan.packets if packet.pts is not None]
    return StreamFacts(
        container=scan.demuxer,
        container_name=av.format.ContainerFormat(scan.demuxer, "r").long_name,
        codec=scan.codec,
        pixel_format=scan.pixel_format,
        width=scan.size[0],
        height=scan.size[1],
        stream=scan.stream_index,
        video_streams=scan.streams,
        rate=str(scan.rate or ""),
        rate_fps=float(scan.rate or 0),
        duration_s=round(file.duration_s, 6),
        packets=len(scan.packets),
        shown_frames=len(known.shown) if known else -1,
        order=ORDERS.get(scan.codec, PACKET_ORDER) if known else IN_ORDER,
        order_unknown=order if isinstance(order, str) else "",
        reordered=bool(known and list(known.shown) != sorted(known.shown)),
        packets_without_pts=len(scan.packets) - len(pts),
        packets_with_repeated_pts=len(pts) - len(set(pts)),
        random_access=None if scan.unread else _random_access(scan, known),
        hidden=_hidden(scan, known) if known else None,
        damage=_damage(scan, timeline),
        asked=sample.asked if sample else [],
        shown=sample.shown if sample else [],
        times_s=[round(timeline.times_s[index], 6) for index in sample.shown] if sample and timeline else [],
        runs=_runs(file, timeline, sample) if sample and timeline and not scan.damaged else [],
    )


def _planned_sample(file: VideoFile, span: Span | None) -> Sample | None:
    """Return the frames that the packets suggest; None where they tell no order, or where the video has ended before."""
    with suppress(VideoError):
        return file.sample(file.planned, span) if file.planned is not None else None
    return None


def _random_access(scan: Scan, order: DisplayOrder | None) -> RandomAccess:
    packets = scan.packets
    points = list(order.starts) if order else [n for n, packet in enumerate(packets) if packet.picture and packet.picture.start]
    flags = [number for number, packet in enumerate(packets) if packet.key]
    false, missing = sorted(set(flags) - set(points)), sorted(set(points) - set(flags))
    leading = _leading(packets, order) if order else {}
    return RandomAccess(
        points=len(points),
        first_points=points[:FIRST],
        longest_gap=max((after - before for before, after in pairwise([*points, len(packets)])), default=len(packets)),
        flags=len(flags),
        first_flags=flags[:FIRST],
        false_flags=len(false),
        first_false=false[:FIRST],
        missing_flags=len(missing),
        first_missing=missing[:FIRST],
        leading_pictures=sum(len(pictures) for pictures in leading.values()) if order else -1,
        open_gops=sum(_needs_earlier(packets, pictures) for pictures in leading.values()) if order else -1,
    )


def _leading(packets: Sequence[Packet], order: DisplayOrder) -> dict[int, list[int]]:
    """Return the packets that are decoded after a random-access point and shown before it, by the point."""
    found: dict[int, list[int]] = {}
    for number in range(len(packets)):
        place = bisect_right(order.starts, number) - 1
        start = order.starts[max(place, 0)]
        if place >= 0 and order.ranks.get(number, order.ranks[start]) < order.ranks[start]:
            found.setdefault(start, []).append(number)
    return found


def _needs_earlier(packets: Sequence[Packet], pictures: Iterable[int]) -> bool:
    return any((picture := packets[number].picture) is None or not picture.independent for number in pictures)


def _hidden(scan: Scan, order: DisplayOrder) -> Hidden:
    shown = set(order.shown)
    others = [(number, packet) for number, packet in enumerate(scan.packets) if number not in shown]
    discarded = [number for number, packet in others if packet.discard]
    without = [n for n, packet in others if not packet.discard and packet.picture is None and n >= scan.first_start]
    unshown = [n for n, packet in others if not packet.discard and packet.picture is not None and not packet.picture.shown]
    return Hidden(
        discarded=len(discarded),
        not_shown=len(unshown),
        without_picture=len(without),
        before_start=len(others) - len({*discarded, *without, *unshown}),
    )


def _damage(scan: Scan, timeline: Timeline | None) -> Damage:
    found = [
        f"packet {number}: {what}"[:MESSAGE_CHARS]
        for number, packet in enumerate(scan.packets)
        if number >= scan.first_start and (what := _wrong(packet))
    ]
    return Damage(
        packets=len(found),
        first=found[:FIRST],
        missing_bytes=scan.missing_bytes,
        broken_at=scan.broken_at,
        ended=scan.ended[:MESSAGE_CHARS],
        lost_at_end=list(timeline.sources).count(LOST) if timeline else 0,
        declared_frames=scan.declared_frames,
    )


def _wrong(packet: Packet) -> str:
    if packet.damage or packet.loss:
        return packet.damage or packet.loss
    if packet.picture is not None and packet.picture.gap:
        return GAP
    return "the container is damaged there" if packet.corrupt else ""


def _runs(file: VideoFile, timeline: Timeline, sample: Sample) -> list[PlannedRun]:
    """Return the runs of the plan. The frames of each are those whose packets it shows."""
    order = file.order
    if not isinstance(order, DisplayOrder):
        return []
    sources = {timeline.sources[index]: index for index in available(timeline, sample.shown)}
    return [
        PlannedRun(
            start=run.start,
            end=run.end,
            packets=run.end - run.start + 1,
            fed=len(run.packets),
            shows=sorted(sources[target] for target in run.targets),
        )
        for run in runs_for(order, file.scan.packets, sources)
    ]


def clip_facts(file: VideoFile, span: Span | None, box_px: int) -> tuple[ClipFacts, npt.NDArray[np.uint8]]:
    """Decode a clip; return what came of it, and its frames small enough for a box, (F, H, W, 3).

    A clip that is refused for its substituted frames is shown all the same.

    Raises:
        VideoError: there is no frame to show.
    """
    clip = file.unchecked_clip(span)
    error_class = error = ""
    try:
        file.check(clip)
    except VideoError as refused:
        error_class, error = refused.code, refused.detail
    timeline = file.decoded if clip.decoder == "pyav" and file.decoded is not None else file.planned
    sample = file.sample(timeline, span) if timeline is not None else Sample(asked=[], shown=[])
    lost = list(file.decoded.places or ()).count(LOST) if file.decoded is not None else -1
    matrix = _matrix(file)
    facts = ClipFacts(
        choice=file.config.decoder,
        decoder=clip.decoder,
        decord_refused=_decord_refused(file, clip),
        in_order=file.decoded is not None,
        why_in_order=_why_in_order(file, clip),
        frames_decoded=len(file.decoded) if file.decoded is not None else -1,
        frames_lost=lost,
        shown=sample.shown,
        times_s=clip.timestamps_s,
        proven=[bool(timeline.proven[index]) for index in sample.shown] if timeline is not None else [],
        displaced_s=clip.displaced_s,
        reason=clip.reason[: 2 * MESSAGE_CHARS],
        rotation_deg=quarter_turn(matrix)[0],
        mirrored=quarter_turn(matrix)[1],
        matrix=list(matrix),
        error_class=error_class,
        error=error,
    )
    return facts, thumbnails(clip.frames, box_px)


def _why_in_order(file: VideoFile, clip: Clip) -> str:
    if file.decoded is None:
        return ""
    if isinstance(file.order, str):
        return file.order
    return "packets are damaged" if file.scan.damaged else f"the plan did not hold: {clip.reason}"[:MESSAGE_CHARS]


def _decord_refused(file: VideoFile, clip: Clip) -> str:
    if file.config.decoder != "decord" or clip.decoder == "decord":
        return ""
    if file.scan.damaged:
        return "packets are damaged"
    with suppress(UnprovenError):
        return file.decord_refusal or "it cannot open the file, counts other frames, or fails to decode one"
    return "the first frame cannot be proven"


def _matrix(file: VideoFile) -> tuple[int, ...]:
    """Return the display matrix of the first frame; empty where none comes out."""
    with suppress(VideoError, UnprovenError):
        frame = _first_frame(file)
        return () if frame is None else display_matrix(frame)
    return ()


def _first_frame(file: VideoFile) -> Any:
    """Return the first frame, None where there is none. Any: PyAV's frames are compiled."""
    if isinstance(file.order, DisplayOrder) and not file.scan.damaged:
        runs = runs_for(file.order, file.scan.packets, file.order.shown[:1])
        with suppress(UnprovenError):
            return next(iter(read_runs(file.scan, file.order, runs, file.limits).values()), None)
    return Walk(file.scan, file.limits).take({0}).get(0)


def quarter_turn(matrix: Sequence[int]) -> tuple[int, bool]:
    """Return the turn clockwise in degrees, and whether frames are mirrored before it. ISO/IEC 14496-12, 6.2.2."""
    if not matrix:
        return 0, False
    a, b, c, d = matrix
    mirrored = a * d - b * c < 0
    right, down = (-a, -b) if mirrored else (a, b)  # where the first axis of the mirrored frame goes
    return round(float(np.degrees(np.arctan2(down, right))) / QUARTER) * QUARTER % 360, mirrored


def thumbnails(frames_FHWC: npt.NDArray[np.uint8], box_px: int) -> npt.NDArray[np.uint8]:
    """Return frames made small enough for a square box, never larger than they are."""
    if not box_px:
        return NO_FRAMES
    _, height, width, _ = frames_FHWC.shape
    scale = min(1.0, box_px / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)) for frame in frames_FHWC])
