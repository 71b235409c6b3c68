"""Files made to harm: small on disk, and large, long or slow for whoever believes their headers."""

import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from tests.poison.mutate import VIDEOS, boxes

Change = Callable[[bytearray, int], None]
"""Changes a file in place; gets where the content of a box begins."""


def patched(content: bytes, changes: dict[bytes, Change]) -> bytes:
    """Return an ISO base media file with the content of some kinds of boxes changed in place."""
    damaged = bytearray(content)
    for box in boxes(content):
        if box.kind in changes:
            changes[box.kind](damaged, box.body)
    return bytes(damaged)


def put(form: str, *values: int, at: int) -> Change:
    """Return the change that packs numbers at an offset into a box."""
    return lambda damaged, body: struct.pack_into(form, damaged, body + at, *values)


def lasting(seconds: int) -> bytes:
    """Return a small MP4 whose headers say that it lasts so long."""
    units = {b"mvhd": put(">II", 1000, seconds * 1000, at=12), b"mdhd": put(">II", 1000, seconds * 1000, at=12)}
    edits = {b"elst": put(">I", seconds * 1000, at=8), b"tkhd": put(">I", seconds * 1000, at=20)}
    spread = {b"stts": put(">II", 60, seconds * 1000 // 60, at=8), **edits}
    return patched((VIDEOS / "testsrc2.mp4").read_bytes(), {**units, **spread})


def with_frames(count: int) -> bytes:
    """Return a small MP4 whose sample table says that it holds so many frames."""
    tables = {b"stsz": put(">II", 1, count, at=4), b"stsc": put(">III", 1, count, 1, at=8), b"stts": put(">I", count, at=8)}
    return patched((VIDEOS / "testsrc2_mpeg4.mp4").read_bytes(), tables)


def crashing() -> bytes:
    """Return a small MOV whose table of times ends decord's process: it makes room for three billion frames."""
    return patched((VIDEOS / "unordered.mov").read_bytes(), {b"stts": put(">I", 0xC2000004, at=8)})


def pointing_at(path: str) -> bytes:
    """Return a small MOV whose pictures are in another file, by a data reference."""
    name = path.encode()
    levels = struct.pack(">10x28x12x64x16xhh16x", 1, 1)
    place = struct.pack(">HH", 2, len(name)) + name + b"\0" * (len(name) % 2) + struct.pack(">HH", 0xFFFF, 0)
    record = _box(b"alis", bytes(4) + levels + place)
    return _rebuilt((VIDEOS / "unordered.mov").read_bytes(), b"dref", bytes(4) + struct.pack(">I", 1) + record)


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", len(content) + 8, kind) + content


def _rebuilt(content: bytes, kind: bytes, body: bytes) -> bytes:
    """Return a file in which the boxes of a kind have another content, and those around them another size."""
    found = next(box for box in boxes(content) if box.kind == kind)
    growth = len(body) - (found.end - found.body)
    grown = bytearray(content)
    for box in boxes(content):
        if box.start <= found.start and found.end <= box.end:
            struct.pack_into(">I", grown, box.start, box.end - box.start + growth)
    return bytes(grown[: found.body]) + body + bytes(grown[found.end :])


def matroska(
    width: int, height: int, codec: str = "V_VP9", packets: Sequence[bytes] = (b"\x82",), times_ms: Sequence[int] | None = None
) -> bytes:
    """Return a Matroska file with one video track of a given size, and no word on its length."""
    doctype = _element(0x4282, b"matroska")
    head = _element(0x1A45DFA3, _element(0x4286, b"\x01") + _element(0x42F2, b"\x04") + _element(0x42F3, b"\x08") + doctype)
    size = _element(0xB0, width.to_bytes(4, "big")) + _element(0xBA, height.to_bytes(4, "big"))
    named = _element(0xD7, b"\x01") + _element(0x73C5, b"\x01") + _element(0x83, b"\x01") + _element(0x86, codec.encode())
    tracks = _element(0x1654AE6B, _element(0xAE, named + _element(0xE0, size)))
    info = _element(0x1549A966, _element(0x2AD7B1, (1_000_000).to_bytes(3, "big")))
    times = times_ms or range(0, 40 * len(packets), 40)
    pairs = zip(times, packets, strict=True)
    blocks = b"".join(_element(0xA3, b"\x81" + struct.pack(">h", time) + b"\x80" + one) for time, one in pairs)
    return head + _element(0x18538067, info + tracks + _element(0x1F43B675, _element(0xE7, b"\x00") + blocks))


def _element(kind: int, content: bytes) -> bytes:
    return kind.to_bytes((kind.bit_length() + 7) // 8, "big") + (len(content) | 1 << 56).to_bytes(8, "big") + content


def avi(width: int, height: int) -> bytes:
    """Return an AVI file with one video stream of a given size, and no picture in it."""
    main = struct.pack("<14I", 40_000, 0, 0, 0x10, 1, 0, 1, 0, width, height, 0, 0, 0, 0)
    stream = b"vidsMJPG" + struct.pack("<10I", 0, 0, 0, 1, 25, 0, 1, 0, 0, 0) + bytes(8)
    form = struct.pack("<IiiHH4s5I", 40, width, height, 1, 24, b"MJPG", 0, 0, 0, 0, 0)
    streams = _chunk(b"LIST", b"strl" + _chunk(b"strh", stream) + _chunk(b"strf", form))
    headers = _chunk(b"LIST", b"hdrl" + _chunk(b"avih", main) + streams)
    return _chunk(b"RIFF", b"AVI " + headers + _chunk(b"LIST", b"movi" + _chunk(b"00dc", bytes(16))))


def _chunk(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("<I", len(content)) + content


def gif(width: int, height: int) -> bytes:
    """Return a GIF of one pixel on a screen of a given size."""
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    return screen + b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00\x3b"


def slow(path: Path, frames: int = 100_000, side_px: int = 2048) -> Path:
    """Write a small WebM that takes minutes to decode: one large picture, and then frame after frame that repeats it."""
    packets = [bytes(packet) for packet in _encoded(side_px, 2)]
    with av.open(str(path), "w", format="webm") as container:
        stream = container.add_stream("libvpx-vp9", rate=30)
        stream.width = stream.height = side_px
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            packet = av.Packet(packets[min(number, 1)])
            packet.stream, packet.time_base = stream, Fraction(1, 30)
            packet.pts = packet.dts = number
            packet.is_keyframe = number == 0
            container.mux(packet)
    return path


def large(path: Path, side_px: int = 8192) -> Path:
    """Write a small WebM of two frames so large that a clip of them takes gigabytes."""
    path.write_bytes(matroska(side_px, side_px, packets=_encoded(side_px, 2)))
    return path


def _encoded(side_px: int, frames: int) -> list[bytes]:
    """Return the VP9 packets of a still picture."""
    context = av.CodecContext.create("libvpx-vp9", "w")
    context.width = context.height = side_px
    context.pix_fmt, context.time_base, context.framerate = "yuv420p", Fraction(1, 30), Fraction(30)
    context.options = {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0", "auto-alt-ref": "0"}
    context.options |= {"error-resilient": "1"}  # a packet that is repeated can be decoded
    packets = []
    for number in range(frames):
        frame = av.VideoFrame(side_px, side_px, "yuv420p")
        for plane in frame.planes:
            plane.update(np.full(plane.buffer_size, 90, np.uint8).tobytes())
        frame.pts, frame.time_base = number, Fraction(1, 30)
        packets += [bytes(packet) for packet in context.encode(frame)]
    return [*packets, *(bytes(packet) for packet in context.encode(None))]
