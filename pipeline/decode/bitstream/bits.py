"""Reading bits and Exp-Golomb numbers, and splitting H.264 and HEVC streams into NAL units.

Source: ITU-T H.264, 7.3.1, 9.1 and annex B; ITU-T H.265, 7.3.1.1, 9.2 and annex B; ISO/IEC 14496-15 for length prefixes.
"""

from collections.abc import Iterator

from pipeline.decode.bitstream.picture import DamagedBitstreamError

UNIT_BYTES = 2048
"""Bytes of a NAL unit that are looked at: parameter sets and recovery points are shorter."""
START_CODE = b"\x00\x00\x01"


class BitReader:
    """Reads the bits of some bytes from the most significant on. Raises DamagedBitstreamError beyond the end."""

    __slots__ = ("left", "value")

    def __init__(self, data: bytes) -> None:
        self.value = int.from_bytes(data, "big")
        self.left = 8 * len(data)

    def u(self, bits: int) -> int:
        """Return an unsigned number of so many bits."""
        if bits > self.left:
            raise DamagedBitstreamError("the header ends early")
        self.left -= bits
        number = self.value >> self.left
        self.value &= (1 << self.left) - 1
        return number

    def ue(self) -> int:
        """Return an unsigned Exp-Golomb number."""
        zeros = self.left - self.value.bit_length()
        if zeros > 32:
            raise DamagedBitstreamError("an Exp-Golomb number of more than 32 bits")
        return self.u(2 * zeros + 1) - 1

    def se(self) -> int:
        """Return a signed Exp-Golomb number."""
        number = self.ue()
        return (number + 1) // 2 if number % 2 else -(number // 2)


def unescaped(data: bytes) -> bytes:
    """Return the payload of a NAL unit without its emulation prevention bytes."""
    return data.replace(b"\x00\x00\x03", b"\x00\x00") if b"\x00\x00\x03" in data else data


def annex_b_units(data: bytes) -> Iterator[bytes]:
    """Yield the NAL units between start codes, without trailing zeros, cut to what headers and parameter sets take."""
    at = data.find(START_CODE)
    while at >= 0:
        following = data.find(START_CODE, at + 3)
        end = following if following >= 0 else len(data)
        unit = data[at + 3 : min(end, at + UNIT_BYTES)].rstrip(b"\x00")
        if unit:
            yield unit
        at = following


def prefixed_units(data: bytes, size: int) -> Iterator[bytes]:
    """Yield the NAL units behind length fields of so many bytes, cut as in `annex_b_units`.

    Raises:
        DamagedBitstreamError: a wrong length.
    """
    at, end = 0, len(data)
    while at < end:
        length = int.from_bytes(data[at : at + size], "big")
        at += size
        if at + length > end:
            raise DamagedBitstreamError("a NAL unit is longer than its packet")
        if length:
            yield data[at : at + min(length, UNIT_BYTES)]
        at += length
