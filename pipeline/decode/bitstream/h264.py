"""H.264: random-access points, references and display order from NAL units.

Display order is the picture order count of the slice headers, sorted between IDR pictures. A true random-access point is an IDR
picture, or a recovery point with exact match and nothing left to recover whose slices are all intra (an open GOP of x264).

Source: ITU-T H.264 (08/2021), 7.3.2.1, 7.3.2.2, 7.3.3, 7.4.1.2.4, 8.2.1, D.2.8, E.1.1.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial

from pipeline.decode.bitstream.bits import BitReader, annex_b_units, prefixed_units, unescaped
from pipeline.decode.bitstream.parameters import ParameterSets
from pipeline.decode.bitstream.picture import DamagedBitstreamError, Picture, UnreadableBitstreamError, check_units

SLICE, PARTITION_A, IDR, SEI, SPS, PPS = 1, 2, 5, 6, 7, 8
RECOVERY_POINT = 6
INTRA_SLICES = frozenset({2, 4, 7, 9})
WITH_CHROMA_FORMAT = frozenset({100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135})
"""Values of profile_idc whose sequence parameter sets tell the chroma format."""
SLICE_HEADER_BYTES = 40
"""Enough for all fields that are read of a slice header."""


@dataclass(frozen=True, slots=True)
class SequenceParameters:
    """What of a sequence parameter set the order of pictures depends on."""

    frame_num_bits: int
    order_type: int
    order_bits: int
    frames_only: bool
    separate_planes: bool
    gaps_allowed: bool


@dataclass(frozen=True, slots=True)
class PictureParameters:
    """What of a picture parameter set the slice header depends on."""

    sequence_id: int
    bottom_order_present: bool
    redundant_present: bool


@dataclass(slots=True)
class Slice:
    """The head of a slice."""

    first: bool
    intra: bool
    idr: bool
    reference: bool
    frame_num: int
    order_lsb: int
    order_bottom_delta: int
    discards_prior: bool
    sequence: SequenceParameters


class H264Parser:
    """Reads the packets of an H.264 stream in decode order."""

    def __init__(self, extradata: bytes) -> None:
        is_prefixed = extradata[:1] == b"\x01"
        self.units = unit_splitter(extradata, prefix_at=4, is_prefixed=is_prefixed)
        self.sets = ParameterSets()
        self.sequence = -1
        self.order_msb = self.order_lsb = 0
        self.frame_num, self.after_reference = 0, True
        self.decoded = 0
        for unit in _avcc_units(extradata) if is_prefixed else annex_b_units(extradata):
            if unit[0] & 31 in (SPS, PPS):
                with suppress(DamagedBitstreamError):
                    self.sets.before_first(_key(unit), unit)

    def picture(self, data: bytes) -> Picture | None:
        """Return the picture in a packet, see `BitstreamParser`."""
        slices: list[Slice] = []
        recovers = False
        self.sets.begin_packet()
        for unit in self.units(data):
            kind = unit[0] & 31
            if kind in (SPS, PPS):
                self.sets.add(_key(unit), unit)
            elif kind == SEI:
                recovers = recovers or recovers_at_once(unit)
            elif kind in (SLICE, IDR):
                slices.append(self._slice(unit))
            elif kind == PARTITION_A:
                raise UnreadableBitstreamError("data partitioning")
        if not slices:
            check_units(data, sum(unit[0] & 31 > 0 for unit in self.units(data)))
            return None
        return self._picture(slices, recovers)

    def _picture(self, slices: list[Slice], recovers: bool) -> Picture:
        head = slices[0]
        if not head.first or sum(item.first for item in slices) > 1:
            raise UnreadableBitstreamError("a packet does not hold exactly one picture")
        if head.idr:
            if head.discards_prior and self.sequence >= 0:
                raise UnreadableBitstreamError("an IDR picture discards pictures before it that were not shown")
            self.sequence += 1
            self.order_msb = self.order_lsb = 0
        self.sequence = max(self.sequence, 0)
        gap = not head.idr and self.decoded > 0 and self._gap(head)
        self.frame_num, self.after_reference = head.frame_num, head.reference
        order = self._order(head)
        self.decoded += 1
        return Picture(
            start=head.idr or (recovers and all(item.intra for item in slices)),
            reference=head.reference,
            sequence=self.sequence,
            order=order,
            gap=gap,
            parameters=self.sets.complete_from_here(),
        )

    def _gap(self, head: Slice) -> bool:
        """Tell whether frame_num skips a reference picture. 7.4.3."""
        expected = (self.frame_num + self.after_reference) % (1 << head.sequence.frame_num_bits)
        return not head.sequence.gaps_allowed and head.frame_num != expected

    def _order(self, head: Slice) -> int:
        """Return the picture order count, 8.2.1.1 for type 0; type 2 is decode order."""
        if head.sequence.order_type == 2:
            return self.decoded
        half, whole = 1 << (head.sequence.order_bits - 1), 1 << head.sequence.order_bits
        msb, ahead = self.order_msb, head.order_lsb - self.order_lsb
        msb += whole if -ahead >= half else -whole if ahead > half else 0
        if head.reference:
            self.order_msb, self.order_lsb = msb, head.order_lsb
        return msb + head.order_lsb + min(0, head.order_bottom_delta)

    def _slice(self, unit: bytes) -> Slice:
        reader = BitReader(unescaped(unit[1:SLICE_HEADER_BYTES]))
        idr, reference = unit[0] & 31 == IDR, unit[0] & 0x60 != 0
        first, kind = reader.ue() == 0, reader.ue()
        picture = picture_parameters(self.sets.get(("pps", reader.ue())))
        sequence = sequence_parameters(self.sets.get(("sps", picture.sequence_id)))
        if sequence.order_type == 1:
            raise UnreadableBitstreamError("picture order count type 1")
        if sequence.separate_planes:
            reader.u(2)
        frame_num = reader.u(sequence.frame_num_bits)
        if not sequence.frames_only and reader.u(1):
            raise UnreadableBitstreamError("field pictures")
        if idr:
            reader.ue()
        lsb = reader.u(sequence.order_bits) if sequence.order_type == 0 else 0
        delta = reader.se() if sequence.order_type == 0 and picture.bottom_order_present else 0
        if picture.redundant_present:
            reader.ue()
        discards = bool(idr and reader.u(1))
        return Slice(first, kind in INTRA_SLICES, idr, reference, frame_num, lsb, delta, discards, sequence)


def unit_splitter(extradata: bytes, *, prefix_at: int, is_prefixed: bool) -> Callable[[bytes], Iterator[bytes]]:
    """Return what splits the packets of a stream: by the first byte of its extradata, not by its container."""
    if not is_prefixed or len(extradata) <= prefix_at:
        return annex_b_units
    return partial(prefixed_units, size=(extradata[prefix_at] & 3) + 1)


def _avcc_units(data: bytes) -> Iterator[bytes]:
    """Yield the parameter sets of an AVCDecoderConfigurationRecord. ISO/IEC 14496-15, 5.3.3.1."""
    at = 5
    for mask in (31, 255):
        count = data[at] & mask if at < len(data) else 0
        at += 1
        for _ in range(count):
            length = int.from_bytes(data[at : at + 2], "big")
            unit = data[at + 2 : at + 2 + length]
            if unit:
                yield unit
            at += 2 + length


def _key(unit: bytes) -> tuple[str, int]:
    """Return kind and id of a parameter set."""
    if unit[0] & 31 == PPS:
        return "pps", BitReader(unescaped(unit[1:12])).ue()
    return "sps", BitReader(unescaped(unit[4:16])).ue()


@lru_cache(64)
def sequence_parameters(unit: bytes) -> SequenceParameters:
    """Read a sequence parameter set. 7.3.2.1.1."""
    reader = BitReader(unescaped(unit[1:]))
    profile = reader.u(8)
    reader.u(16)
    reader.ue()
    separate = _chroma(reader) if profile in WITH_CHROMA_FORMAT else False
    frame_num_bits, order_type = reader.ue() + 4, reader.ue()
    order_bits = reader.ue() + 4 if order_type == 0 else 0
    if order_type == 1:
        return SequenceParameters(frame_num_bits, order_type, 0, True, separate, True)
    if frame_num_bits > 16 or order_bits > 16:
        raise DamagedBitstreamError("a sequence parameter set with impossible lengths")
    reader.ue()
    gaps = bool(reader.u(1))
    reader.ue()
    reader.ue()
    return SequenceParameters(frame_num_bits, order_type, order_bits, bool(reader.u(1)), separate, gaps)


def _chroma(reader: BitReader) -> bool:
    """Read past chroma format, bit depths and scaling lists; returns separate_colour_plane_flag."""
    chroma = reader.ue()
    separate = bool(reader.u(1)) if chroma == 3 else False
    reader.ue()
    reader.ue()
    reader.u(1)
    if reader.u(1):
        for number in range(12 if chroma == 3 else 8):
            if reader.u(1):
                _scaling_list(reader, 16 if number < 6 else 64)
    return separate


def _scaling_list(reader: BitReader, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + reader.se()) % 256
        last = following or last


@lru_cache(64)
def picture_parameters(unit: bytes) -> PictureParameters:
    """Read a picture parameter set up to its flag for redundant pictures. 7.3.2.2."""
    reader = BitReader(unescaped(unit[1:]))
    reader.ue()
    sequence_id = reader.ue()
    reader.u(1)
    bottom = bool(reader.u(1))
    if reader.ue():
        raise UnreadableBitstreamError("slice groups")
    reader.ue()
    reader.ue()
    reader.u(3)
    reader.se()
    reader.se()
    reader.se()
    reader.u(2)
    return PictureParameters(sequence_id, bottom, bool(reader.u(1)))


def recovers_at_once(unit: bytes) -> bool:
    """Tell whether a message says that decoding may begin here and is exact at once. D.2.8."""
    data, at = unescaped(unit[1:]), 0
    while at + 2 < len(data):
        kind, at = _extended(data, at)
        size, at = _extended(data, at)
        if kind == RECOVERY_POINT:
            reader = BitReader(data[at : at + size])
            return (reader.ue(), reader.u(1), reader.u(1)) == (0, 1, 0)
        at += size
    return False


def _extended(data: bytes, at: int) -> tuple[int, int]:
    """Return a number that is coded as bytes of 255 and a last one, and where it ends."""
    number = 0
    while at < len(data) and data[at] == 255:
        number, at = number + 255, at + 1
    return number + (data[at] if at < len(data) else 0), at + 1
