"""What speaks against frames of a file that was decoded in order, and which frames it spoils."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from pipeline.decode.order import DisplayOrder
from pipeline.decode.plan import start_of
from pipeline.decode.reader import Walk
from pipeline.decode.scan import Packet, Scan

GAP = "a reference picture before it is missing"
FLAGGED_CODECS = frozenset({"h264", "mpeg4", "mpeg2video", "mpeg1video"})
"""Their decoders flag a frame whose packet is cut short; a packet that only the demuxer suspects is judged by that."""
NEAR = 3
"""Packets: a demuxer notices a join a little before it, in those that it has not handed out yet."""


def suspects(scanned: Scan, decoded: Walk) -> dict[int, str]:
    """Return packets that may have spoilt frames, with what speaks against each."""
    found: dict[int, str] = {}
    for number, packet in enumerate(scanned.packets):
        if number < scanned.first_start:
            continue
        if packet.damage or packet.loss:
            found[number] = packet.damage or packet.loss
        elif packet.picture is not None and packet.picture.gap:
            found[number] = GAP
        elif packet.corrupt and scanned.codec not in FLAGGED_CODECS and not _is_joined_after(scanned.packets, number):
            found[number] = "the container is damaged there"
    found.update({output.packet: "the decoder flags its frame as corrupt" for output in decoded.outputs if output.corrupt})
    return found | decoded.complaints | decoded.failed


def proven(scanned: Scan, order: DisplayOrder | str, sources: Iterable[int], reasons: dict[int, str]) -> list[bool]:
    """Tell for each frame whether nothing since its random-access point speaks against it.

    Packet n lies at place 2 n, and what is missing before it at 2 n - 1: a random-access point needs nothing before it.
    """
    start_for = _starts(scanned.packets, order)
    alone = {n for n, reason in reasons.items() if reason != GAP or _is_leading(scanned.packets[n], n, order)}
    spoiling = sorted(
        2 * n - (reason == GAP)
        for n, reason in reasons.items()
        if _may_be_reference(scanned.packets[n], scanned.codec) and not (reason == GAP and n in alone)
    )
    return [
        source not in alone and bisect_left(spoiling, 2 * start_for(source)) == bisect_right(spoiling, 2 * source)
        for source in sources
    ]


def _starts(packets: Sequence[Packet], order: DisplayOrder | str) -> Callable[[int], int]:
    """Return what gives the random-access point of a packet; by the container's word for codecs that are not read."""
    if isinstance(order, DisplayOrder):
        return partial(start_of, order)
    believed = [n for n, packet in enumerate(packets) if (packet.picture.start if packet.picture else packet.key)]
    return lambda source: believed[place - 1] if (place := bisect_right(believed, source)) else 0


def _is_leading(packet: Packet, number: int, order: DisplayOrder | str) -> bool:
    """Tell whether a picture is no reference and shown before the random-access point it follows: it spoils itself alone."""
    if isinstance(order, str) or packet.picture is None or packet.picture.reference:
        return False
    place = bisect_right(order.starts, number)
    return place > 0 and order.ranks[number] < order.ranks[order.starts[place - 1]]


def _may_be_reference(packet: Packet, codec: str) -> bool:
    """Tell whether damage in a packet may spoil others. NAL units say so in their first byte; other headers may be damaged."""
    picture = packet.picture
    unsure = bool(packet.damage or packet.loss) or codec not in ("h264", "hevc")
    return unsure or picture is None or picture.reference or picture.gap


def _is_joined_after(packets: Sequence[Packet], number: int) -> bool:
    """Tell whether another recording follows: a random-access point whose time lies before. Its counters need not go on."""
    packet, following = packets[number], packets[number + 1 : number + 1 + NEAR]
    return any(
        n.picture is not None and n.picture.start and n.dts is not None and n.dts < (packet.dts or 0) for n in following
    )
