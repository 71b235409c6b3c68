"""Which packets have to be decoded for some frames: the fewest runs from true random-access points that cover them."""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.decode.order import DisplayOrder
from pipeline.decode.scan import Packet


@dataclass(frozen=True, kw_only=True)
class Run:
    """Packets that are decoded one after another, from a true random-access point on."""

    start: int
    """The first packet."""
    end: int
    """The last packet."""
    packets: tuple[int, ...]
    """Those fed to the decoder: references, targets, and packets without a picture."""
    targets: tuple[int, ...]
    """Packets whose frames are wanted."""


def runs_for(order: DisplayOrder, packets: Sequence[Packet], targets: Iterable[int]) -> list[Run]:
    """Return the runs that give the frames of some shown packets, in decode order."""
    spans: list[list[int]] = []
    grouped: list[list[int]] = []
    for start, target in sorted((start_of(order, target), target) for target in set(targets)):
        if spans and start <= spans[-1][1]:
            spans[-1][1] = max(spans[-1][1], target)
            grouped[-1].append(target)
        else:
            spans.append([start, target])
            grouped.append([target])
    return [_run(packets, start, end, wanted) for (start, end), wanted in zip(spans, grouped, strict=True)]


def start_of(order: DisplayOrder, target: int) -> int:
    """Return the last random-access point that is decoded and shown no later than a packet."""
    rank = order.ranks[target]
    place = bisect_right(order.starts, target) - 1
    while place > 0 and order.ranks[order.starts[place]] > rank:
        place -= 1
    return order.starts[max(place, 0)]


def _run(packets: Sequence[Packet], start: int, end: int, targets: Sequence[int]) -> Run:
    wanted = frozenset(targets)
    fed, access_point = [], start
    for number in range(start, end + 1):
        picture = packets[number].picture
        access_point = number if picture is not None and picture.start else access_point
        undecodable = picture is not None and picture.leading and access_point == start
        if number in wanted or picture is None or (picture.reference and not undecodable):
            fed.append(number)
    return Run(start=start, end=end, packets=tuple(fed), targets=tuple(sorted(wanted)))
