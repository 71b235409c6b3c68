"""The frames of a file in display order: where each comes from, when it is shown, and whether it is proven.

A frame is proven when decoding began at a true random-access point, no packet since then is missing, damaged or refused, and
FFmpeg flags nothing.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.decode.order import DEFAULT_RATE, DisplayOrder, display_times
from pipeline.decode.reader import Walk
from pipeline.decode.scan import Packet, Scan

LOST = -1
FLAGGED_CODECS = frozenset({"h264", "mpeg4", "mpeg2video", "mpeg1video"})
"""Their decoders flag a frame whose packet is cut short; a packet that only the demuxer suspects is judged by that."""
MEASURED = frozenset({"mov", "matroska", "avi", "asf", "flv"})
"""Demuxers whose duration comes from a header, not from an estimate."""
TOLERATED_S, TOLERATED_SHARE = 1.0, 0.05
"""How much shorter than its header says a file may be that is not cut short by its structure."""


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """The frames of a file, in display order."""

    sources: Sequence[int]
    """Packet number of each frame; LOST for frames that the file should hold and does not."""
    places: Sequence[int] | None
    """Place of each among the decoder's outputs, LOST where none came out; None where the frames come from a plan."""
    times_s: Sequence[float]
    """Time of each since the first."""
    proven: Sequence[bool] | None
    """Whether each is proven; None: all but the lost ones."""
    reason: str
    """What speaks against frames that are not proven; empty where all are."""

    def __len__(self) -> int:
        return len(self.sources)

    def came_out(self, index: int) -> bool:
        """Tell whether there are pixels for a place in display order."""
        return self.sources[index] != LOST and (self.places is None or self.places[index] != LOST)

    def is_proven(self, index: int) -> bool:
        """Tell whether the frame at a place in display order is the one that the file holds there."""
        return self.sources[index] != LOST and (self.proven is None or self.proven[index])


def planned_timeline(scanned: Scan, order: DisplayOrder) -> Timeline:
    """Return the frames that a plan gives."""
    pts = [scanned.packets[number].pts for number in order.shown]
    return _with_lost_end(scanned, list(order.shown), None, display_times(scanned, pts), None, "")


def decoded_timeline(scanned: Scan, order: DisplayOrder | str, decoded: Walk) -> Timeline:
    """Return the frames that decoding everything in order showed; where something is damaged, those it should have shown."""
    suspects = _suspects(scanned, decoded)
    outputs = decoded.outputs
    if not suspects:
        sources = [output.packet for output in outputs]
        times = display_times(scanned, [output.pts for output in outputs])
        return _with_lost_end(scanned, sources, list(range(len(sources))), times, None, "")
    place_of = {output.packet: place for place, output in enumerate(outputs)}
    sources = list(order.shown) if isinstance(order, DisplayOrder) else _with_lost(scanned, decoded)
    silent = [source for source in sources if source not in place_of]
    reasons = {**dict.fromkeys(silent, "no frame came out"), **suspects}
    proven = _proven(scanned.packets, order, sources, reasons)
    first = min(reasons)
    times = display_times(scanned, [scanned.packets[source].pts for source in sources])
    reason = f"packet {first} of {len(scanned.packets)}: {reasons[first]}"
    return _with_lost_end(scanned, sources, [place_of.get(source, LOST) for source in sources], times, proven, reason)


def _suspects(scanned: Scan, decoded: Walk) -> dict[int, str]:
    """Return packets that may have spoilt frames, with what speaks against each."""
    found: dict[int, str] = {}
    for number, packet in enumerate(scanned.packets):
        if number < scanned.first_start:
            continue
        if packet.damage:
            found[number] = packet.damage
        elif packet.picture is not None and packet.picture.gap:
            found[number] = "a reference picture before it is missing"
        elif packet.corrupt and scanned.codec not in FLAGGED_CODECS:
            found[number] = "the container is damaged there"
    found.update({output.packet: "the decoder flags its frame as corrupt" for output in decoded.outputs if output.corrupt})
    found.update(dict.fromkeys((n for n in decoded.failed if n >= scanned.first_start), "the decoder refuses it"))
    return found


def _with_lost(scanned: Scan, decoded: Walk) -> list[int]:
    """Return the packets of the outputs, with refused ones where they stand in decode order."""
    sources = [output.packet for output in decoded.outputs]
    for number in sorted(decoded.failed - set(sources)):
        place = next((i for i, source in enumerate(sources) if source > number), len(sources))
        sources.insert(place, number)
    return sources


def _proven(
    packets: Sequence[Packet], order: DisplayOrder | str, sources: Iterable[int], reasons: dict[int, str]
) -> list[bool]:
    """Tell for each frame whether nothing since its random-access point speaks against it."""
    starts = order.starts if isinstance(order, DisplayOrder) else _believed_starts(packets)
    ranks = order.ranks if isinstance(order, DisplayOrder) else {}
    spoiling = sorted(number for number in reasons if _is_reference(packets[number]))
    proven = []
    for source in sources:
        place = bisect_right(starts, source) - 1
        while place > 0 and ranks.get(starts[place], -1) > ranks.get(source, 0):
            place -= 1
        start = starts[place] if place >= 0 else 0
        spoilt = bisect_left(spoiling, start) < bisect_right(spoiling, source)
        proven.append(source not in reasons and not spoilt)
    return proven


def _believed_starts(packets: Sequence[Packet]) -> tuple[int, ...]:
    """Return where decoding may begin by the bitstream, or by the container's word for codecs that are not read."""
    return tuple(n for n, packet in enumerate(packets) if (packet.picture.start if packet.picture else packet.key))


def _is_reference(packet: Packet) -> bool:
    return packet.damage != "" or packet.picture is None or packet.picture.reference or packet.picture.gap


def _with_lost_end(
    scanned: Scan,
    sources: list[int],
    places: list[int] | None,
    times_s: list[float],
    proven: list[bool] | None,
    reason: str,
) -> Timeline:
    """Return a timeline that goes on, with lost frames, to the end that the header of a file cut short declares."""
    step_s = 1 / float(scanned.rate or DEFAULT_RATE)
    lost = lost_frames(scanned, (times_s[-1] if times_s else 0.0) + step_s, step_s)
    if lost:
        begin = (times_s[-1] if times_s else 0.0) + step_s
        reason = reason or _cut_short(scanned)
        times_s = times_s + [begin + number * step_s for number in range(lost)]
        places = places if places is None else places + [LOST] * lost
        proven = proven if proven is None else proven + [False] * lost
    return Timeline(sources=sources + [LOST] * lost, places=places, times_s=times_s, proven=proven, reason=reason)


def lost_frames(scanned: Scan, shown_s: float, step_s: float) -> int:
    """Return how many frames are missing at the end, by the length that the header declares."""
    if scanned.demuxer not in MEASURED or any(packet.discard for packet in scanned.packets):
        return 0
    is_cut = bool(scanned.missing_bytes or scanned.ended)
    missing_s = scanned.declared_s - (shown_s if is_cut else max(shown_s, scanned.covered_s))
    tolerated_s = step_s / 2 if is_cut else max(TOLERATED_S, TOLERATED_SHARE * scanned.declared_s)
    return round(missing_s / step_s) if missing_s > tolerated_s else 0


def _cut_short(scanned: Scan) -> str:
    if scanned.missing_bytes:
        return f"the file is cut short: {scanned.missing_bytes} bytes are missing"
    why = f": {scanned.ended}" if scanned.ended else ""
    return f"the file ends before the {scanned.declared_s:.1f} s that its header declares{why}"
