"""Whether the elements of a Matroska or FLV file follow one another. FFmpeg goes on at the next one it knows, and says nothing.

Source: RFC 8794, 4 and 5; RFC 9559, 5.1 (elements of a segment and of a cluster); FLV specification, annex E.3 and E.4.1.
"""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

SEGMENT, CLUSTER = 0x18538067, 0x1F43B675
ENTERED = frozenset({SEGMENT, CLUSTER})
"""Elements whose own elements are walked, since their length may be unknown."""
KNOWN = ENTERED | {
    0x1A45DFA3,  # EBML header
    0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1043A770, 0x1941A469, 0x1254C367,  # of a segment
    0xE7, 0x5854, 0xA7, 0xAB, 0xA3, 0xA0, 0xAF,  # of a cluster
    0xEC, 0xBF,  # of any
}  # fmt: skip
FLV_HEADER, FLV_TAG = 9, 11
"""Bytes."""
FLV_TYPES = frozenset({8, 9, 15, 18})
"""Sound, video, and script data in two forms."""


def first_break(path: Path, demuxer: str) -> int:
    """Return the byte at which something else stands than an element; -1 where all follow one another, or none are walked.

    An element that reaches beyond the end of the file is no break.
    """
    walks: dict[str, Callable[[BinaryIO, int], int]] = {"matroska": _elements, "flv": _tags}
    if demuxer not in walks:
        return -1
    with path.open("rb") as file:
        return walks[demuxer](file, path.stat().st_size)


def _elements(file: BinaryIO, size: int) -> int:
    at = 0
    while at < size:
        file.seek(at)
        head = file.read(12)
        name_bytes = 9 - head[0].bit_length()
        name = int.from_bytes(head[:name_bytes], "big")
        if name not in KNOWN:
            return at
        length, length_bytes = _length(head[name_bytes:])
        at += name_bytes + length_bytes + (0 if name in ENTERED else length)
    return -1


def _length(head: bytes) -> tuple[int, int]:
    """Return the length of an element's content, and how many bytes tell it."""
    if not head or not head[0]:
        return 0, 1
    width = 9 - head[0].bit_length()
    return int.from_bytes(head[:width], "big") & ((1 << 7 * width) - 1), width


def _tags(file: BinaryIO, size: int) -> int:
    at = FLV_HEADER + 4
    while at + FLV_TAG <= size:
        file.seek(at)
        head = file.read(FLV_TAG)
        if head[0] & 0x1F not in FLV_TYPES or any(head[8:]):
            return at
        at += FLV_TAG + int.from_bytes(head[1:4], "big") + 4
    return -1
