"""VP8, VP9 and AV1: key frames and hidden frames from the first bytes of each frame. Packets are in display order.

No frame is taken for one without influence: each may change the probabilities that later ones are read with.

Source: RFC 6386, 9.1; VP9 bitstream specification 0.7, 6.2 and annex B; AV1 bitstream specification (2019), 5.3 and 5.9.2.
"""

from collections.abc import Iterator

from pipeline.decode.bitstream.bits import BitReader
from pipeline.decode.bitstream.picture import DamagedBitstreamError, Picture, UnreadableBitstreamError

VP8_START = b"\x9d\x01\x2a"
SEQUENCE_HEADER, FRAME_HEADER, FRAME = 1, 3, 6


class _ShownAsDecoded:
    """Numbers pictures as they come."""

    def __init__(self, extradata: bytes) -> None:
        del extradata
        self.decoded = 0

    def _picture(self, *, start: bool, shown: bool) -> Picture:
        self.decoded += 1
        return Picture(start=start and shown, reference=True, shown=shown, sequence=0, order=self.decoded)


class Vp8Parser(_ShownAsDecoded):
    """Reads the packets of a VP8 stream."""

    def picture(self, data: bytes) -> Picture | None:
        """Return the picture in a packet, see `BitstreamParser`."""
        key, shown = not data[0] & 1, bool(data[0] & 16)
        if key and data[3:6] != VP8_START:
            raise DamagedBitstreamError("a key frame without its start code")
        return self._picture(start=key, shown=shown)


class Vp9Parser(_ShownAsDecoded):
    """Reads the packets of a VP9 stream, superframes among them."""

    def picture(self, data: bytes) -> Picture | None:
        """Return the picture in a packet, see `BitstreamParser`."""
        heads = [_vp9_head(frame) for frame in _vp9_frames(data)]
        shown = sum(is_shown for _, is_shown in heads)
        if shown > 1:
            raise UnreadableBitstreamError("a packet shows several pictures")
        return self._picture(start=heads[0] == (True, True), shown=shown == 1)


class Av1Parser(_ShownAsDecoded):
    """Reads the temporal units of an AV1 stream."""

    def picture(self, data: bytes) -> Picture | None:
        """Return the picture in a packet, see `BitstreamParser`."""
        has_sequence, heads, still = False, [], False
        for kind, body in _units(data):
            if kind == SEQUENCE_HEADER:
                has_sequence, still = True, bool(body and body[0] & 8)
            elif kind in (FRAME_HEADER, FRAME) and body:
                heads.append((True, True) if still else _av1_head(body))
        shown = sum(is_shown for _, is_shown in heads)
        if shown > 1 or not heads:
            raise UnreadableBitstreamError("a packet does not show exactly one picture")
        return self._picture(start=has_sequence and heads[0] == (True, True), shown=shown == 1)


def _vp9_frames(data: bytes) -> Iterator[bytes]:
    """Yield the frames of a packet, which may be a superframe."""
    marker = data[-1]
    width, count = (marker >> 3 & 3) + 1, (marker & 7) + 1
    index = 2 + width * count
    if marker >> 5 != 6 or len(data) < index or data[-index] != marker:
        yield data
        return
    at = 0
    for number in range(count):
        field = len(data) - index + 1 + number * width
        length = int.from_bytes(data[field : field + width], "little")
        if at + length > len(data) - index:
            raise DamagedBitstreamError("a superframe with wrong lengths")
        if length:
            yield data[at : at + length]
        at += length


def _vp9_head(frame: bytes) -> tuple[bool, bool]:
    """Return whether a frame is a key frame and whether it is shown."""
    reader = BitReader(frame[:4])
    if reader.u(2) != 2:
        raise DamagedBitstreamError("not a VP9 frame")
    if reader.u(1) + 2 * reader.u(1) == 3:
        reader.u(1)
    if reader.u(1):
        return False, True
    key = not reader.u(1)
    return key, bool(reader.u(1))


def _units(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and payload of each open bitstream unit."""
    at = 0
    while at < len(data):
        head = data[at]
        at += 2 if head & 4 else 1
        length = len(data) - at
        if head & 2:
            length, at = _leb128(data, at)
        if head & 128 or at + length > len(data):
            raise DamagedBitstreamError("not an AV1 temporal unit")
        yield head >> 3 & 15, data[at : at + length]
        at += length


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    number = 0
    for count in range(8):
        if at >= len(data):
            break
        number |= (data[at] & 127) << 7 * count
        at += 1
        if not data[at - 1] & 128:
            return number, at
    raise DamagedBitstreamError("a length without end")


def _av1_head(body: bytes) -> tuple[bool, bool]:
    """Return whether a frame header is of a key frame that is not shown again, and whether it is shown."""
    reader = BitReader(body[:1])
    if reader.u(1):
        return False, True
    kind = reader.u(2)
    return kind == 0, bool(reader.u(1))
