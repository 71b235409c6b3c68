"""Display order and times of a stream's frames, from its packets alone.

The order is that of the bitstream. Times of the container are labels that are put on it, never the reason for it: AVI and ASF
number packets in decode order, program streams time one packet in ten, joined files use the same times twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from pipeline.decode.bitstream.picture import Picture
from pipeline.decode.scan import Packet, Scan

DEEPEST_REORDERING = 16
"""No decoder of H.264 or HEVC holds back more pictures than this."""
DEFAULT_RATE = 25.0
"""Frames per second where nothing tells: FFmpeg's own default for raw streams."""


@dataclass(frozen=True, kw_only=True)
class DisplayOrder:
    """Which packet each shown frame comes from, in the order they are shown."""

    shown: tuple[int, ...]
    """Packet numbers of the shown frames."""
    ranks: dict[int, int]
    """Place of every picture, hidden ones too, among all pictures in display order; by packet number."""
    starts: tuple[int, ...]
    """Packets, rising, at which decoding can begin: true random-access points with all parameter sets at hand."""

    depth: int
    """How many pictures that are decoded before one are shown after it, at most."""

    @cached_property
    def index_of(self) -> dict[int, int]:
        """Place of a shown packet among the shown ones."""
        return {packet: index for index, packet in enumerate(self.shown)}


def display_order(scanned: Scan) -> DisplayOrder | str:
    """Return the display order; or, in a sentence, why the packets do not tell it."""
    if scanned.unread:
        return scanned.unread
    begin = scanned.first_start
    first = scanned.packets[begin].picture if scanned.packets else None
    if first is None or not first.start:
        return "no true random-access point"
    keys = _keys(scanned.packets, begin)
    if keys is None:
        return "packets with unreadable headers and no times to place them by"
    order = sorted(keys, key=lambda number: (*keys[number], number))
    depth = _depth(order)
    if not any(scanned.packets[number].damage for number in order) and depth > DEEPEST_REORDERING:
        return "pictures are further out of order than any decoder allows"
    ranks = {number: rank for rank, number in enumerate(order)}
    shown = tuple(number for number in order if _comes_out(scanned.packets[number], ranks[number], ranks[begin]))
    if not shown:
        return "no packet shows a picture"
    if not scanned.damaged and not _agrees_with_times([scanned.packets[number] for number in sorted(ranks)], ranks):
        return "times contradict the order of the pictures"
    starts = tuple(n for n in sorted(ranks) if (p := scanned.packets[n].picture) and p.start and p.parameters)
    return DisplayOrder(shown=shown, ranks=ranks, starts=starts or (begin,), depth=depth)


def _keys(packets: Sequence[Packet], begin: int) -> dict[int, tuple[int, int]] | None:
    """Return sequence and rank of each picture from the first start on; None where a damaged packet cannot be placed.

    Behind a packet whose headers are damaged the bitstream does not tell the order any more: then times do, if they agree with
    the bitstream up to there.
    """
    numbers = range(begin, len(packets))
    broken = next((number for number in numbers if packets[number].damage), None)
    if broken is None:
        return {n: (picture.sequence, picture.order) for n in numbers if (picture := packets[n].picture) is not None}
    times = {n: packets[n].pts for n in numbers if packets[n].damage or packets[n].picture is not None}
    known = [time for time in times.values() if time is not None]
    intact = [n for n in range(begin, broken) if n in times]
    if len(set(known)) < len(times) or known == sorted(known) or sorted(intact, key=lambda n: times[n] or 0) != sorted(
        intact, key=lambda n: (packets[n].picture.sequence, packets[n].picture.order)  # type: ignore[union-attr]
    ):
        return None
    return {n: (0, time) for n, time in times.items() if time is not None}


def _depth(order: Sequence[int]) -> int:
    """Return how many pictures that are decoded before one are shown after it, at most."""
    latest, deepest = -1, 0
    decoded_at = {number: place for place, number in enumerate(sorted(order))}
    for rank, number in enumerate(order):
        latest = max(latest, decoded_at[number])
        deepest = max(deepest, latest - rank)
    return deepest


def _comes_out(packet: Packet, rank: int, first_rank: int) -> bool:
    """Tell whether a decoder that began at the first start gives a frame for a packet."""
    picture: Picture | None = packet.picture
    if picture is None:
        return not packet.discard
    return picture.shown and not packet.discard and (rank >= first_rank or picture.independent)


def _agrees_with_times(packets: Sequence[Packet], ranks: dict[int, int]) -> bool:
    """Tell whether presentation times, where they are distinct and not mere decode order, say the same order."""
    times = [packet.pts for packet in packets]
    known = [time for time in times if time is not None]
    if len(known) < len(times) or len(set(known)) < len(known) or known == sorted(known):
        return True
    numbers = sorted(ranks)
    by_time = sorted(range(len(known)), key=known.__getitem__)
    return [ranks[numbers[place]] for place in by_time] == list(range(len(numbers)))


def display_times(scanned: Scan, pts: Sequence[int | None]) -> list[float]:
    """Return the time of each frame in seconds since the first, never falling, for frames in display order.

    Times that rise are taken as they are. Where they start again, as in joined files, the next part follows the one before.
    Times in decode order are sorted. Everything else follows from the frame rate.
    """
    tick_s, step_s = float(scanned.tick_s), 1 / float(scanned.rate or DEFAULT_RATE)
    known = [time for time in pts if time is not None]
    if tick_s and len(known) == len(pts):
        falls = sum(after <= before for before, after in pairwise(known))
        if falls == 0:
            return [(time - known[0]) * tick_s for time in known]
        if len(set(known)) == len(known) and falls * 20 > len(known):
            return [(time - min(known)) * tick_s for time in sorted(known)]
        if falls * 4 <= len(known):
            return _continued([time * tick_s for time in known], step_s)
    return _between([None if time is None else time * tick_s for time in pts], step_s)


def _continued(times_s: Sequence[float], step_s: float) -> list[float]:
    """Return times in which a part that starts again follows the one before."""
    shown = [0.0]
    for before, after in pairwise(times_s):
        shown.append(shown[-1] + (after - before if after > before else step_s))
    return shown


def _between(times_s: Sequence[float | None], step_s: float) -> list[float]:
    """Return times at the frame rate, held to the known ones where these are most of all or fit the rate."""
    anchors = [(place, time) for place, time in enumerate(times_s) if time is not None]
    rises = len(anchors) > 1 and all(earlier < later for (_, earlier), (_, later) in pairwise(anchors))
    fits = 2 * len(anchors) > len(times_s) or all(
        0.5 * step_s * (b - a) <= later - earlier <= 2 * step_s * (b - a) for (a, earlier), (b, later) in pairwise(anchors)
    )
    if not (rises and fits):
        return [place * step_s for place in range(len(times_s))]
    return _interpolated(anchors, len(times_s), step_s)


def _interpolated(anchors: Sequence[tuple[int, float]], count: int, step_s: float) -> list[float]:
    """Return times on straight lines between anchors, at the frame rate outside of them, from zero on."""
    import numpy as np

    places, times = np.array([place for place, _ in anchors]), np.array([time for _, time in anchors])
    everywhere = np.arange(count)
    shown = np.interp(everywhere, places, times)
    shown = np.where(everywhere < places[0], times[0] - (places[0] - everywhere) * step_s, shown)
    shown = np.where(everywhere > places[-1], times[-1] + (everywhere - places[-1]) * step_s, shown)
    return [float(time) for time in shown - shown[0]]
