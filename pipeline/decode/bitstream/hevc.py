"""HEVC: random-access points, leading pictures, references and display order from NAL units.

A true random-access point is an IRAP picture (NAL unit types 16 to 21). RASL pictures are shown before the CRA picture they
follow and need the one before it; where decoding begins at that CRA picture, they do not come out.

Source: ITU-T H.265 (08/2021), 7.3.1.2, 7.3.2.2, 7.3.2.3, 7.3.3, 7.3.6.1, 7.4.2.2, 8.1.3, 8.3.1; ISO/IEC 14496-15, 8.3.3.1.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

from pipeline.decode.bitstream.bits import BitReader, annex_b_units, unescaped
from pipeline.decode.bitstream.h264 import unit_splitter
from pipeline.decode.bitstream.parameters import ParameterSets
from pipeline.decode.bitstream.picture import DamagedBitstreamError, Picture, UnreadableBitstreamError, check_units

RADL, RASL = frozenset({6, 7}), frozenset({8, 9})
BLA, IDR = frozenset({16, 17, 18}), frozenset({19, 20})
IRAP_RANGE = range(16, 24)
STARTS = range(16, 22)
VPS, SPS, PPS, END_OF_SEQUENCE, END_OF_BITSTREAM = 32, 33, 34, 36, 37
SLICE_HEADER_BYTES = 24


@dataclass(frozen=True, slots=True)
class SequenceParameters:
    """What of a sequence parameter set the order of pictures depends on."""

    order_bits: int
    highest_layer: int
    separate_planes: bool


@dataclass(frozen=True, slots=True)
class PictureParameters:
    """What of a picture parameter set the slice header depends on."""

    sequence_id: int
    output_flag_present: bool
    extra_bits: int


@dataclass(slots=True)
class Slice:
    """The head of the first slice of a picture."""

    kind: int
    layer: int
    discards_prior: bool
    is_output: bool
    order_lsb: int
    sequence: SequenceParameters


class HevcParser:
    """Reads the packets of an HEVC stream in decode order."""

    def __init__(self, extradata: bytes) -> None:
        is_prefixed = len(extradata) > 22 and extradata[:3] not in (b"\x00\x00\x00", b"\x00\x00\x01")
        self.units = unit_splitter(extradata, prefix_at=21, is_prefixed=is_prefixed)
        self.sets = ParameterSets()
        self.sequence = -1
        self.order_msb = self.order_lsb = 0
        self.begins = True
        """The next random-access point begins a coded video sequence, so its leading RASL pictures do not come out."""
        self.drops_leading = False
        for unit in _hvcc_units(extradata) if is_prefixed else annex_b_units(extradata):
            if _kind(unit) in (VPS, SPS, PPS) and _is_base(unit):
                with suppress(DamagedBitstreamError):
                    self.sets.before_first(_key(unit), unit)

    def picture(self, data: bytes) -> Picture | None:
        """Return the picture in a packet, see `BitstreamParser`."""
        heads: list[Slice] = []
        ends = False
        self.sets.begin_packet()
        for unit in self.units(data):
            kind = _kind(unit)
            if len(unit) < 3 or not _is_base(unit):
                continue
            if kind in (VPS, SPS, PPS):
                self.sets.add(_key(unit), unit)
            elif kind in (END_OF_SEQUENCE, END_OF_BITSTREAM):
                ends = ends or bool(heads)
                self.begins = self.begins or not heads
            elif (kind < 10 or kind in STARTS) and unit[2] & 0x80:
                heads.append(self._slice(unit, kind))
        if len(heads) > 1:
            raise UnreadableBitstreamError("a packet holds several pictures")
        if not heads:
            check_units(data, sum(len(unit) > 1 for unit in self.units(data)))
        picture = self._picture(heads[0]) if heads else None
        self.begins = self.begins or ends
        return picture

    def _picture(self, head: Slice) -> Picture:
        if head.kind in STARTS:
            self._begin(head)
        order = self._order(head)
        leading = head.kind in RASL
        return Picture(
            start=head.kind in STARTS,
            reference=not (head.kind < 15 and head.kind % 2 == 0 and head.layer >= head.sequence.highest_layer),
            shown=head.is_output and not (leading and self.drops_leading) and self.sequence >= 0,
            sequence=self.sequence,
            order=order,
            leading=leading,
            independent=head.kind in RADL,
            parameters=self.sets.complete_from_here(),
        )

    def _begin(self, head: Slice) -> None:
        """Take a random-access point. 8.1.3."""
        self.drops_leading = head.kind in IDR or head.kind in BLA or self.begins
        if self.drops_leading:
            if head.discards_prior and self.sequence >= 0:
                raise UnreadableBitstreamError("a random-access point discards pictures before it that were not shown")
            self.sequence += 1
            self.order_msb = self.order_lsb = 0
        self.begins = False

    def _order(self, head: Slice) -> int:
        """Return the picture order count. 8.3.1."""
        half, whole = 1 << (head.sequence.order_bits - 1), 1 << head.sequence.order_bits
        msb, ahead = self.order_msb, head.order_lsb - self.order_lsb
        if head.kind in STARTS and self.drops_leading:
            msb = 0
        else:
            msb += whole if -ahead >= half else -whole if ahead > half else 0
        is_discardable = head.kind < 15 and head.kind % 2 == 0
        if head.layer == 0 and not is_discardable and head.kind not in RADL and head.kind not in RASL:
            self.order_msb, self.order_lsb = msb, head.order_lsb
        return msb + head.order_lsb

    def _slice(self, unit: bytes, kind: int) -> Slice:
        reader = BitReader(unescaped(unit[2:SLICE_HEADER_BYTES]))
        reader.u(1)
        discards = bool(kind in IRAP_RANGE and reader.u(1))
        picture = picture_parameters(self.sets.get(("pps", reader.ue())))
        sequence = sequence_parameters(self.sets.get(("sps", picture.sequence_id)))
        reader.u(picture.extra_bits)
        reader.ue()
        is_output = bool(reader.u(1)) if picture.output_flag_present else True
        if sequence.separate_planes:
            reader.u(2)
        lsb = 0 if kind in IDR else reader.u(sequence.order_bits)
        return Slice(kind, (unit[1] & 7) - 1, discards, is_output, lsb, sequence)


def _kind(unit: bytes) -> int:
    return unit[0] >> 1 & 63


def _is_base(unit: bytes) -> bool:
    """Tell whether a NAL unit belongs to the base layer: others are views or alpha planes, which are not shown."""
    return len(unit) > 1 and not (unit[0] & 1) and not (unit[1] >> 3)


def _key(unit: bytes) -> tuple[str, int]:
    """Return kind and id of a parameter set."""
    if _kind(unit) == VPS:
        return "vps", unit[2] >> 4 if len(unit) > 2 else 0
    if _kind(unit) == PPS:
        return "pps", BitReader(unescaped(unit[2:12])).ue()
    return "sps", _sps_id(unit)[1]


def _hvcc_units(data: bytes) -> Iterator[bytes]:
    """Yield the NAL units of an HEVCDecoderConfigurationRecord."""
    at = 23
    for _ in range(data[22] if len(data) > 22 else 0):
        count = int.from_bytes(data[at + 1 : at + 3], "big")
        at += 3
        for _ in range(count):
            length = int.from_bytes(data[at : at + 2], "big")
            if unit := data[at + 2 : at + 2 + length]:
                yield unit
            at += 2 + length
            if at > len(data):
                return


def _sps_id(unit: bytes) -> tuple[BitReader, int, int]:
    """Read a sequence parameter set up to its id; returns the reader behind it, the id, and the highest sub-layer."""
    reader = BitReader(unescaped(unit[2:]))
    reader.u(4)
    highest = reader.u(3)
    reader.u(1)
    reader.u(88)
    reader.u(8)
    present = [(reader.u(1), reader.u(1)) for _ in range(highest)]
    if highest:
        reader.u(2 * (8 - highest))
    for has_profile, has_level in present:
        reader.u(88 * has_profile + 8 * has_level)
    return reader, reader.ue(), highest


@lru_cache(64)
def sequence_parameters(unit: bytes) -> SequenceParameters:
    """Read a sequence parameter set up to the length of the picture order count. 7.3.2.2.1."""
    reader, _, highest = _sps_id(unit)
    separate = reader.ue() == 3 and bool(reader.u(1))
    reader.ue()
    reader.ue()
    if reader.u(1):
        for _ in range(4):
            reader.ue()
    reader.ue()
    reader.ue()
    bits = reader.ue() + 4
    if bits > 16:
        raise DamagedBitstreamError("a sequence parameter set with an impossible length")
    return SequenceParameters(bits, highest, separate)


@lru_cache(64)
def picture_parameters(unit: bytes) -> PictureParameters:
    """Read a picture parameter set up to the number of extra bits in slice headers. 7.3.2.3.1."""
    reader = BitReader(unescaped(unit[2:]))
    reader.ue()
    sequence_id = reader.ue()
    reader.u(1)
    output_flag_present = bool(reader.u(1))
    return PictureParameters(sequence_id, output_flag_present, reader.u(3))
