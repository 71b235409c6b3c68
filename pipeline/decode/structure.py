"""Whether the elements of a Matroska or FLV file follow one another. FFmpeg goes on at the next one it knows, and says nothing.

Source: RFC 8794, 4 and 5; RFC 9559, 5.1 (elements of a segment and of a cluster); FLV specification, annex E.3 and E.4.1.
"""

from collections.abc import Callable
from mmap import ACCESS_READ, mmap
from pathlib import Path

SEGMENT, CLUSTER = 0x18538067, 0x1F43B675
ENTERED = frozenset({SEGMENT, CLUSTER})
"""Elements whose own elements are walked, since their length may be unknown."""
KNOWN = ENTERED | {
    0x1A45DFA3,  # EBML header
    0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1043A770, 0x1941A469, 0x1254C367,  # of a segment
    0xE7, 0x5854, 0xA7, 0xAB, 0xA3, 0xA0, 0xAF,  # of a cluster
    0xEC, 0xBF, 0x1B538667,  # of any; the last is the slot of a signature
}  # fmt: skip
UNKNOWN = (1 << 56) - 1
"""Length of an element that does not say where it ends."""
MOST_ELEMENTS = 2_000_000
"""A day of video has fewer; a file of more is not walked to its end, which would take longer than decoding it."""
FLV_TAG = 11
"""Bytes of a tag's header."""
FLV_TYPES = frozenset({8, 9, 15, 18})
"""Sound, video, and script data in two forms."""


def first_break(path: Path, demuxer: str) -> int:
    """Return the byte at which something else stands than an element; -1 where all follow one another, or none are walked.

    An element that reaches beyond the end of the file is no break.
    """
    walks: dict[str, Callable[[mmap], int]] = {"matroska": _elements, "flv": _tags}
    if demuxer not in walks or path.stat().st_size == 0:
        return -1
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        return walks[demuxer](content)


def _elements(content: mmap) -> int:
    at, end = 0, len(content)
    for _ in range(MOST_ELEMENTS):
        if at >= end:
            break
        head = content[at : at + 12]
        name_bytes = 9 - head[0].bit_length()
        name = int.from_bytes(head[:name_bytes], "big")
        if name not in KNOWN:
            return at
        length, length_bytes = _length(head[name_bytes:])
        at += name_bytes + length_bytes + (0 if name in ENTERED else length)
        if name == SEGMENT and length != UNKNOWN:
            end = min(end, at + length)  # what follows a segment is no part of it
    return -1


def _length(head: bytes) -> tuple[int, int]:
    """Return the length of an element's content, `UNKNOWN` where all its bits are set, and how many bytes tell it."""
    if not head or not head[0]:
        return 0, 1
    width = 9 - head[0].bit_length()
    most = (1 << 7 * width) - 1
    length = int.from_bytes(head[:width], "big") & most
    return UNKNOWN if length == most else length, width


def _tags(content: mmap) -> int:
    at = int.from_bytes(content[5:9], "big") + 4  # where the body begins, by the header
    for _ in range(MOST_ELEMENTS):
        head = content[at : at + FLV_TAG]
        if len(head) < FLV_TAG:
            break
        if head[0] & 0x1F not in FLV_TYPES or any(head[8:]):
            return at
        at += FLV_TAG + int.from_bytes(head[1:4], "big") + 4
    return -1
