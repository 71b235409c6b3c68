"""Reading frames by index with decord, for the files in which its indices are provably right.

decord seeks to what the container calls a keyframe and counts packets from there. That gives the right frames only where each
of these is a true random-access point with nothing shown before it, and where packets, times and frames correspond one to one.
"""

import itertools
import logging
from collections.abc import Sequence
from typing import Any

from pipeline.decode.order import DisplayOrder
from pipeline.decode.orientation import Pixels
from pipeline.decode.scan import Scan

logger = logging.getLogger(__name__)

DEMUXERS = frozenset({"mov", "matroska"})
CODECS = frozenset({"h264", "vp8", "vp9"})
PIXEL_FORMATS = frozenset({"yuv420p", "yuvj420p"})


class DecordFailedError(Exception):
    """decord cannot open the file, counts other frames than its packets show, or fails to decode one."""


def refusal(scanned: Scan, order: DisplayOrder, *, is_turned: bool) -> str:
    """Return why decord's frames of a file are not provably right; empty where they are.

    `is_turned`: its frames carry a display matrix other than the identity.
    """
    times = [scanned.packets[number].pts for number in order.shown]
    checks = (
        (scanned.demuxer not in DEMUXERS, f"the container {scanned.demuxer}"),
        (scanned.codec not in CODECS, f"the codec {scanned.codec}"),
        (scanned.pixel_format not in PIXEL_FORMATS, f"the pixel format {scanned.pixel_format}"),
        (scanned.streams != 1, f"{scanned.streams} video streams"),
        (len(order.shown) != len(scanned.packets), "packets that show no frame"),
        (not _rise(times), "times that are missing, used twice, or not in display order"),
        (not _seeks_are_right(scanned, order), "keyframes of the container at which decoding cannot begin"),
        (is_turned, "a display matrix"),
    )
    return next((reason for is_wrong, reason in checks if is_wrong), "")


def _rise(times: Sequence[int | None]) -> bool:
    """Tell whether times are all known and rise."""
    return all(a is not None and b is not None and a < b for a, b in itertools.pairwise(times)) and None not in times


def _seeks_are_right(scanned: Scan, order: DisplayOrder) -> bool:
    """Tell whether each keyframe of the container is a true random-access point before which nothing behind it is shown."""
    starts, highest = set(order.starts), -1
    if len(order.ranks) != len(scanned.packets):
        return False
    for number, packet in enumerate(scanned.packets):
        if packet.key:
            if number not in starts or order.ranks[number] != number:
                return False
            highest = order.ranks[number]
        if order.ranks[number] < highest:
            return False
    return True


def load() -> None:
    """Load decord and silence it."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)


def read_frames(scanned: Scan, order: DisplayOrder, indices: Sequence[int]) -> dict[int, Pixels]:
    """Return the pixels of some frames by index. Raises DecordFailedError."""
    import decord

    load()
    try:
        reader: Any = decord.VideoReader(str(scanned.path), ctx=decord.cpu(0), num_threads=1)
        if len(reader) != len(order.shown):
            raise DecordFailedError(f"decord counts {len(reader)} frames, the packets show {len(order.shown)}")
        if not set(reader.get_key_indices()) <= set(order.starts):  # its FFmpeg is older, and flags other packets
            raise DecordFailedError("decord seeks to packets at which decoding cannot begin")
        frames = reader.get_batch(list(indices)).asnumpy()
    except (decord.DECORDError, RuntimeError, IndexError) as error:
        raise DecordFailedError(str(error).strip().splitlines()[0][:200] if str(error).strip() else "decord failed") from error
    return dict(zip(indices, frames, strict=True))
