"""MPEG and H.26x streams without a file header, told apart by their first start code or their packet rhythm.

Cameras and recorders write elementary streams with three or four bytes of start code and with access unit delimiters,
messages or parameter sets first; a transport stream may begin in the middle of a packet.
"""

START_CODE = b"\x00\x00\x01"
PACKET_BYTES = (188, 192, 204)
"""MPEG-TS; with a time stamp of four bytes, as camcorders write it; with error correction."""
SYNC = 0x47
LEAST_PACKETS = 5
HEVC_FIRST = frozenset({0x40, 0x42, 0x44, 0x46, 0x4E})
"""First bytes of NAL units with VPS, SPS, PPS, access unit delimiter, and messages."""
H264_FIRST = frozenset({1, 5, 6, 7, 8, 9})
"""NAL unit types that an H.264 stream may begin with."""
PACK, SYSTEM, SEQUENCE = 0xBA, 0xBB, 0xB3
VC1_SEQUENCE = 0x0F
MPEG4_FIRST = (0xB0, 0xB5, 0xB6)
LAYERS = range(0x20, 0x30)
PES_VIDEO = range(0xC0, 0xF0)


def elementary_demuxer(head: bytes) -> str:
    """Return the demuxer of a stream that begins with a start code, "" where none is there."""
    rest = head.lstrip(b"\x00")
    if len(head) - len(rest) < 2 or rest[:1] != b"\x01" or len(rest) < 4:
        return ""
    code, following = rest[1], rest[2]
    if code in (PACK, SYSTEM) or code in PES_VIDEO:
        return "mpeg"
    if code == SEQUENCE:
        return "mpegvideo"
    if code in MPEG4_FIRST or (code in LAYERS and _is_layer(rest)) or rest[2:5] == START_CODE:
        return "m4v"
    if code in HEVC_FIRST and following == 1:
        return "hevc"
    if code == VC1_SEQUENCE:
        return "vc1"
    return "h264" if code < 0x80 and code & 31 in H264_FIRST else ""


def _is_layer(rest: bytes) -> bool:
    """Tell a header of a video object layer from an H.264 NAL unit that begins with the same byte."""
    return rest[1] & 31 not in H264_FIRST


def is_transport_stream(head: bytes) -> bool:
    """Tell whether sync bytes stand at one distance, wherever the first packet begins."""
    return any(
        len(marks := head[offset::size]) >= LEAST_PACKETS and set(marks) == {SYNC}
        for size in PACKET_BYTES
        for offset in range(size)
    )
