"""How large a picture a container declares, read without a native library.

FFmpeg forgets a size that it finds impossible, and with it the reason to refuse the file. Matroska, AVI and GIF have room
for such sizes; the fields of ISO base media are smaller, and decoders do not believe them.
"""

import struct
from collections.abc import Iterator

MASTERS = frozenset({0x18538067, 0x1654AE6B, 0xAE, 0xE0})
"""Segment, Tracks, TrackEntry, Video."""
PIXEL_WIDTH, PIXEL_HEIGHT = 0xB0, 0xBA
DEEPEST = 8


def declared_pixels(head: bytes, demuxer: str) -> tuple[int, int] | None:
    """Return width and height of the largest picture that the beginning of a file declares, None where it says nothing."""
    readers = {"matroska": _matroska, "avi": _avi, "gif": _gif}
    sizes = readers[demuxer](head) if demuxer in readers else ()
    return max(sizes, key=lambda size: size[0] * size[1], default=None)


def _matroska(head: bytes) -> Iterator[tuple[int, int]]:
    width = 0
    for kind, value in _elements(head, 0, len(head), 0):
        if kind == PIXEL_WIDTH:
            width = value
        elif kind == PIXEL_HEIGHT:
            yield width, value


def _elements(head: bytes, at: int, end: int, depth: int) -> Iterator[tuple[int, int]]:
    """Yield identity and number of each element with a picture's size, in order."""
    while at < end and depth < DEEPEST:
        kind, at = _number(head, at, marked=True)
        size, body = _number(head, at, marked=False)
        if body > end or kind == 0:
            return
        stop = end if size == (1 << 7 * (body - at)) - 1 else min(body + size, end)
        if kind in MASTERS:
            yield from _elements(head, body, stop, depth + 1)
        elif kind in (PIXEL_WIDTH, PIXEL_HEIGHT):
            yield kind, int.from_bytes(head[body : min(stop, body + 8)], "big")
        at = stop


def _number(head: bytes, at: int, *, marked: bool) -> tuple[int, int]:
    """Return a number of variable length, and where it ends; beyond the file where there is none."""
    first = head[at] if at < len(head) else 0
    length = 9 - first.bit_length()
    if length > 8 or at + length > len(head):
        return 0, len(head) + 1
    value = int.from_bytes(head[at : at + length], "big")
    return value if marked else value & ((1 << 7 * length) - 1), at + length


def _gif(head: bytes) -> Iterator[tuple[int, int]]:
    if len(head) >= 10:
        width, height = struct.unpack_from("<HH", head, 6)
        yield width, height


def _avi(head: bytes) -> Iterator[tuple[int, int]]:
    at = head.find(b"vids")
    form = head.find(b"strf", at)
    if at >= 0 and 0 <= form <= len(head) - 20:
        width, height = struct.unpack_from("<ii", head, form + 12)
        yield abs(width), abs(height)
