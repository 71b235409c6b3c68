"""Whether a file is as long as its own header says. A file cut short is told by its outermost structure, not by guessing.

Source: ISO/IEC 14496-12, 4.2; RFC 8794 and RFC 9559 (Matroska); RIFF and OpenDML AVI 1.02; ASF specification 01.20.03, 3.2;
FLV and AMF 0 specifications.
"""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

BOXES_READ = 100_000
LARGEST = 1e15
"""Bytes; no file is larger."""
SEGMENT = b"\x18\x53\x80\x67"


def declared_size(path: Path, demuxer: str) -> int:
    """Return how many bytes a file must have by its own header; 0 where its container does not say."""
    readers: dict[str, Callable[[BinaryIO, int], int]] = {
        "mov": _boxes,
        "matroska": _segment,
        "avi": _riff,
        "asf": _asf,
        "flv": _flv,
    }
    if demuxer not in readers:
        return 0
    with path.open("rb") as file:
        return readers[demuxer](file, path.stat().st_size)


def _boxes(file: BinaryIO, size: int) -> int:
    """Walk the boxes of ISO base media; the last may reach beyond the end."""
    at = 0
    for _ in range(BOXES_READ):
        file.seek(at)
        head = file.read(16)
        if len(head) < 8:
            break
        length = int.from_bytes(head[:4], "big")
        if length == 1 and len(head) == 16:
            length = int.from_bytes(head[8:16], "big")
        if length < 8 or not head[4:8].isascii():
            break
        at += length
    return at if at > size else 0


def _segment(file: BinaryIO, size: int) -> int:
    """Read the length of a Matroska segment, which may be unknown."""
    head = file.read(4096)
    at = head.find(SEGMENT) + 4
    if at < 4 or at >= len(head) or not head[at]:
        return 0
    width = 9 - head[at].bit_length()
    length = int.from_bytes(head[at : at + width], "big") & ((1 << 7 * width) - 1)
    return 0 if length == (1 << 7 * width) - 1 else at + width + length


def _riff(file: BinaryIO, size: int) -> int:
    """Walk the RIFF chunks of an AVI file."""
    at = 0
    for _ in range(BOXES_READ):
        file.seek(at)
        head = file.read(12)
        if len(head) < 12 or head[:4] != b"RIFF":
            break
        length = struct.unpack_from("<I", head, 4)[0]
        at += 8 + length + length % 2
    return at if at > size + 1 else 0  # the last padding byte may be left out


def _asf(file: BinaryIO, size: int) -> int:
    """Read the file size from the file properties object."""
    head = file.read(8192)
    at = head.find(b"\xa1\xdc\xab\x8c\x47\xa9\xcf\x11\x8e\xe4\x00\xc0\x0c\x20\x53\x65")
    is_broadcast = at >= 0 and len(head) >= at + 92 and head[at + 88] & 1
    return 0 if at < 0 or is_broadcast or len(head) < at + 48 else int(struct.unpack_from("<Q", head, at + 40)[0])


def _flv(file: BinaryIO, size: int) -> int:
    """Read `filesize` from the script data at the beginning, a number of AMF."""
    head = file.read(4096)
    at = head.find(b"filesize\x00")
    number = struct.unpack_from(">d", head, at + 9)[0] if 0 <= at <= len(head) - 17 else 0.0
    return int(number) if 0 < number < LARGEST else 0
