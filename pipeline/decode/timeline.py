"""The frames of a file in display order: where each comes from, when it is shown, and whether it is proven.

A frame is proven when decoding began at a true random-access point, no packet since then is missing, damaged or refused, FFmpeg
reports nothing, and its place among all frames is certain.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median

from pipeline.decode.order import DEEPEST_REORDERING, DEFAULT_RATE, DisplayOrder, display_times
from pipeline.decode.proof import proven, suspects
from pipeline.decode.reader import Walk
from pipeline.decode.scan import Scan

LOST = -1
MEASURED = frozenset({"mov", "matroska", "avi", "asf", "flv"})
"""Demuxers whose duration comes from a header, not from an estimate."""
TIMED = frozenset({"matroska", "flv", "asf", "mpegts"})
"""Demuxers whose packets carry times of their own, so that a gap shows where some are missing."""
TOLERATED_S, TOLERATED_SHARE = 1.0, 0.05
"""How much shorter than its header says a file may be that is not cut short by its structure."""
TOLERATED_FRAMES = 0.01
"""Share of frames that the header of an AVI file may count too many."""
MOST_LOST = 200_000
"""Lost frames that are counted in one place: a header may declare any number."""
GAP_STEPS = 1.5
"""In a damaged file, frames are missing where a step between two times is that many times the usual one."""


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """The frames of a file, in display order."""

    sources: Sequence[int]
    """Packet number of each frame; LOST for frames that the file should hold and does not."""
    places: Sequence[int] | None
    """Place of each among the decoder's outputs, LOST where none came out; None where the frames come from a plan."""
    times_s: Sequence[float]
    """Time of each since the first."""
    proven: Sequence[bool]
    """Whether each is proven to be the frame that the file holds there."""
    reason: str
    """What speaks against frames that are not proven; empty where all are."""

    def __len__(self) -> int:
        return len(self.sources)

    def came_out(self, index: int) -> bool:
        """Tell whether there are pixels for a place in display order."""
        return self.sources[index] != LOST and (self.places is None or self.places[index] != LOST)


def planned_timeline(scanned: Scan, order: DisplayOrder) -> Timeline:
    """Return the frames that a plan gives."""
    times = display_times(scanned, [scanned.packets[number].pts for number in order.shown])
    timeline = Timeline(sources=order.shown, places=None, times_s=times, proven=[True] * len(times), reason="")
    return _with_lost_end(scanned, timeline, order.depth)


def decoded_timeline(scanned: Scan, order: DisplayOrder | str, decoded: Walk) -> Timeline:
    """Return the frames that decoding everything in order showed; where something is damaged, those it should have shown."""
    found = suspects(scanned, decoded)
    outputs = decoded.outputs
    depth = order.depth if isinstance(order, DisplayOrder) else DEEPEST_REORDERING
    if not found and not scanned.damaged:
        times = display_times(scanned, [output.pts for output in outputs])
        every = range(len(outputs))
        sources = [output.packet for output in outputs]
        timeline = Timeline(sources=sources, places=every, times_s=times, proven=[True] * len(every), reason="")
        return _with_lost_end(scanned, timeline, depth)
    place_of = {output.packet: place for place, output in enumerate(outputs)}
    sources = list(order.shown) if isinstance(order, DisplayOrder) else _with_refused(decoded)
    reasons = {**dict.fromkeys((s for s in sources if s not in place_of), "no frame came out"), **found}
    times = display_times(scanned, [scanned.packets[source].pts for source in sources])
    timeline = Timeline(
        sources=sources,
        places=[place_of.get(source, LOST) for source in sources],
        times_s=times,
        proven=proven(scanned, order, sources, reasons),
        reason=_first_of(reasons, len(scanned.packets)),
    )
    return _with_lost_end(scanned, _placed(scanned, timeline), depth)


def _first_of(reasons: dict[int, str], packets: int) -> str:
    return f"packet {min(reasons)} of {packets}: {reasons[min(reasons)]}" if reasons else ""


def _with_refused(decoded: Walk) -> list[int]:
    """Return the packets of the outputs, with refused ones where they stand in decode order."""
    sources = [output.packet for output in decoded.outputs]
    for number in sorted(decoded.failed.keys() - set(sources)):
        place = next((i for i, source in enumerate(sources) if source > number), len(sources))
        sources.insert(place, number)
    return sources


def _placed(scanned: Scan, timeline: Timeline) -> Timeline:
    """Return the timeline of a damaged file; where packets may be missing, no frame's place among all frames is certain."""
    counted = scanned.declared_frames == len(scanned.packets)
    indexed = scanned.demuxer == "mov" and scanned.declared_frames > 0  # by the sample table; fragments have none
    if counted or indexed or (scanned.demuxer in TIMED and not _loses_packets(scanned, timeline)):
        return timeline
    where = f" at byte {scanned.broken_at}" if scanned.broken_at >= 0 else ""
    reason = timeline.reason or f"the container is damaged{where}"
    return replace(timeline, proven=[False] * len(timeline), reason=f"{reason}, and packets may be missing")


def _loses_packets(scanned: Scan, timeline: Timeline) -> bool:
    """Tell whether the demuxer reports a loss, the bitstream misses a picture, or times have a gap."""
    behind = scanned.packets[scanned.first_start :]
    if any(packet.pts is None or (packet.picture and packet.picture.gap) for packet in behind):
        return True
    if any(packet.loss for packet in behind[:-1]):
        return True
    steps = [after - before for before, after in pairwise(timeline.times_s)]
    return bool(steps) and max(steps) > GAP_STEPS * median(steps)


def _with_lost_end(scanned: Scan, timeline: Timeline, depth: int) -> Timeline:
    """Return a timeline that goes on, with lost frames, to the end that the header of a file cut short declares.

    Where pictures are reordered, others that are shown between the last ones may be lost as well: times show how many, and the
    last ones are not proven.
    """
    step_s = 1 / float(scanned.rate or DEFAULT_RATE)
    begin_s = (timeline.times_s[-1] if timeline.times_s else 0.0) + step_s
    lost = min(lost_frames(scanned, begin_s, step_s), MOST_LOST)
    if _loses_inside(scanned, lost):
        return replace(timeline, proven=[False] * len(timeline), reason=timeline.reason or _cut_short(scanned))
    if not lost:
        return timeline
    if len(timeline) and scanned.demuxer != "avi":
        timeline = _with_gaps(timeline, len(timeline) - DEEPEST_REORDERING)
    sure = max(0, len(timeline) - DEEPEST_REORDERING) if depth else len(timeline)
    return replace(
        timeline,
        sources=[*timeline.sources, *[LOST] * lost],
        places=None if timeline.places is None else [*timeline.places, *[LOST] * lost],
        times_s=[*timeline.times_s, *(begin_s + number * step_s for number in range(lost))],
        proven=[*timeline.proven[:sure], *[False] * (len(timeline) + lost - sure)],
        reason=timeline.reason or _cut_short(scanned),
    )


def _with_gaps(timeline: Timeline, begin: int) -> Timeline:
    """Return a timeline with lost frames wherever a step from some frame on is a multiple of the usual one."""
    steps = [after - before for before, after in pairwise(timeline.times_s)]
    usual = median(steps) if steps else 0.0
    sources, places, times, proven = [], [], [], []
    for index, step in enumerate([0.0, *steps]):
        is_gap = index >= begin and usual > 0 and step > GAP_STEPS * usual
        missing = min(round(step / usual) - 1, MOST_LOST) if is_gap else 0
        end_s = timeline.times_s[index]
        sources += [LOST] * missing + [timeline.sources[index]]
        places += [LOST] * missing + [LOST if timeline.places is None else timeline.places[index]]
        proven += [False] * missing + [timeline.proven[index]]
        times += [end_s - usual * (missing - number) for number in range(missing)] + [end_s]
    kept = None if timeline.places is None else places
    return replace(timeline, sources=sources, places=kept, times_s=times, proven=proven)


def _loses_inside(scanned: Scan, lost_at_end: int) -> bool:
    """Tell whether a file has fewer packets than its header says, and not because its end is cut off."""
    packets = scanned.packets
    if _discards(scanned) or len(packets) == scanned.declared_frames:
        return False
    if scanned.demuxer == "avi" and scanned.declared_frames:
        counted = 1 + max((packet.dts or 0 for packet in packets), default=0)
        is_cut_inside = bool(scanned.missing_bytes) and not packets[-1].corrupt
        return is_cut_inside or (not scanned.missing_bytes and counted < scanned.declared_frames * (1 - TOLERATED_FRAMES))
    is_measured = scanned.demuxer in ("mov", "matroska") and scanned.declared_s > 0  # what is cut off may hold no frame
    return bool(scanned.missing_bytes) and not lost_at_end and not is_measured


def _discards(scanned: Scan) -> bool:
    return any(packet.discard for packet in scanned.packets)


def lost_frames(scanned: Scan, shown_s: float, step_s: float) -> int:
    """Return how many frames are missing at the end, by the length that the header declares."""
    if scanned.demuxer not in MEASURED or _discards(scanned):
        return 0
    is_cut = bool(scanned.missing_bytes or scanned.ended or scanned.damaged)
    if is_cut and scanned.demuxer == "avi":
        return max(0, scanned.declared_frames - len(scanned.packets))
    missing_s = scanned.declared_s - (shown_s if is_cut else max(shown_s, scanned.covered_s))
    tolerated_s = step_s / 2 if is_cut else max(TOLERATED_S, TOLERATED_SHARE * scanned.declared_s)
    return round(missing_s / step_s) if missing_s > tolerated_s else 0


def _cut_short(scanned: Scan) -> str:
    if scanned.missing_bytes:
        return f"the file is cut short: {scanned.missing_bytes} bytes are missing"
    why = f": {scanned.ended}" if scanned.ended else ""
    return f"the file ends before the {scanned.declared_s:.1f} s that its header declares{why}"
