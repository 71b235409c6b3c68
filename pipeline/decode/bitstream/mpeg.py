"""MPEG-1, MPEG-2 and MPEG-4 part 2: picture types from start codes.

B pictures are shown at once and are no references; I and P pictures are shown before the next of their kind.

Source: ISO/IEC 11172-2, 2.4.2.3; ITU-T H.262, 6.2.2, 6.2.3; ISO/IEC 14496-2, 6.2.3, 6.2.5.
"""

from collections.abc import Iterator

from pipeline.decode.bitstream.bits import START_CODE, BitReader
from pipeline.decode.bitstream.parameters import ParameterSets
from pipeline.decode.bitstream.picture import DamagedBitstreamError, Picture, UnreadableBitstreamError, check_units

PICTURE, SEQUENCE, EXTENSION, VOP, GROUP = 0x00, 0xB3, 0xB5, 0xB6, 0xB8
GROUP_OF_VOPS = 0xB3
"""In MPEG-4 part 2, where no sequence header has this code."""
BIDIRECTIONAL, RECTANGULAR = 2, 0
LAYERS = range(0x20, 0x30)
"""Start codes of video object layers."""
SEQUENCE_EXTENSION, CODING_EXTENSION = 1, 8
FRAME_STRUCTURE = 3
NUMBERS = 1024
"""Temporal references are counted modulo this."""


class _ShownByType:
    """Display order of streams in which B pictures are shown at once and others one later."""

    def __init__(self) -> None:
        self.sets = ParameterSets()
        self.anchors = 0

    def _picture(self, *, intra: bool, bidirectional: bool, start: bool, closed: bool = False) -> Picture:
        self.anchors += not bidirectional
        return Picture(
            start=start and intra,
            reference=not bidirectional,
            sequence=0,
            order=2 * self.anchors - bidirectional,
            independent=closed,
            parameters=self.sets.complete_from_here(),
        )


class _TemporalReferences:
    """Numbers of pictures in display order, from each group's begin on: gaps show lost pictures. H.262, 6.3.9."""

    def __init__(self) -> None:
        self.anchor: Picture | None = None
        self.number, self.expected, self.between = -1, -1, 0
        """Number of the last I or P picture, how many B pictures belong before it in display order, and how many came."""
        self.restarts = True

    def begin_group(self) -> None:
        """Note that numbers begin again with the next I picture."""
        self.restarts = True

    def take(self, picture: Picture, number: int) -> None:
        """Take the next picture, and mark the one before or behind which others are missing."""
        if not picture.reference:
            self.between += 1
            picture.gap = not self.restarts and self.expected >= 0 and number > self.number
            return
        if self.anchor is not None and self.expected >= 0 and self.between != self.expected:
            self.anchor.gap = True
        self.expected = -1 if self.restarts else (number - self.number - 1) % NUMBERS
        self.anchor, self.number, self.between, self.restarts = picture, number, 0, False


class Mpeg12Parser(_ShownByType):
    """Reads the packets of an MPEG-1 or MPEG-2 stream. A random-access point is an I picture with a sequence header."""

    def __init__(self, extradata: bytes) -> None:
        super().__init__()
        self.closed = False
        self.references = _TemporalReferences()
        for code, body in _sections(extradata):
            self._take(code, body, first=True)

    def picture(self, data: bytes) -> Picture | None:
        """Return the picture in a packet, see `BitstreamParser`."""
        kinds, number, has_sequence = [], 0, False
        self.sets.begin_packet()
        for code, body in _sections(data):
            has_sequence = has_sequence or code == SEQUENCE
            self._take(code, body, first=False)
            if code == GROUP and len(body) > 3:
                self.closed = bool(body[3] & 0x40)
                self.references.begin_group()
            elif code == PICTURE and len(body) > 1:
                kinds.append(body[1] >> 3 & 7)
                number = body[0] << 2 | body[1] >> 6
            elif code == EXTENSION and len(body) > 2 and body[0] >> 4 == CODING_EXTENSION and body[2] & 3 != FRAME_STRUCTURE:
                raise UnreadableBitstreamError("field pictures")
        if not kinds:
            check_units(data, data.count(START_CODE))
            return None
        if len(kinds) > 1 or kinds[0] not in (1, 2, 3):
            raise UnreadableBitstreamError("a packet does not hold exactly one picture")
        picture = self._picture(intra=kinds[0] == 1, bidirectional=kinds[0] == 3, start=has_sequence, closed=self.closed)
        self.references.take(picture, number)
        return picture

    def _take(self, code: int, body: bytes, *, first: bool) -> None:
        """Note a sequence header or its extension."""
        is_extension = code == EXTENSION and body[:1] and body[0] >> 4 == SEQUENCE_EXTENSION
        if code == SEQUENCE or is_extension:
            (self.sets.before_first if first else self.sets.add)(("sequence", code), body)


class Mpeg4Parser(_ShownByType):
    """Reads the packets of an MPEG-4 part 2 stream in decode order. A random-access point is an I-VOP."""

    def __init__(self, extradata: bytes) -> None:
        super().__init__()
        self.resolution, self.interlaced = 0, False
        """Ticks per second, and whether pictures may be coded as fields."""
        self.times = _VopTimes()
        self.gap = False
        for code, body in _sections(extradata):
            if code in LAYERS:
                self.sets.before_first(("layer", code), body)
                self.resolution, self.interlaced = _layer(body)

    def picture(self, data: bytes) -> Picture | None:
        """Return the picture in a packet, see `BitstreamParser`."""
        kinds = []
        self.sets.begin_packet()
        for code, body in _sections(data):
            if code in LAYERS:
                self.sets.add(("layer", code), body)
                self.resolution, self.interlaced = _layer(body)
            elif code == GROUP_OF_VOPS:
                self.times.begin_group(body)
            elif code == VOP:
                kinds.append(self._kind(body))
        if not kinds:
            check_units(data, data.count(START_CODE))
            return None
        if len(kinds) > 1:
            raise UnreadableBitstreamError("a packet holds several pictures")
        picture = self._picture(intra=kinds[0] == 0, bidirectional=kinds[0] == BIDIRECTIONAL, start=True)
        picture.gap = self.gap
        return picture

    def _kind(self, body: bytes) -> int:
        """Return the type of a VOP. Raises UnreadableBitstreamError where FFmpeg would show nothing for it."""
        reader = BitReader(body[:16])
        kind, seconds = reader.u(2), 0
        while reader.u(1):
            seconds += 1
        reader.u(1)
        ticks = reader.u(max((self.resolution - 1).bit_length(), 1))
        reader.u(1)
        if not self.resolution or not reader.u(1):
            raise UnreadableBitstreamError("a picture that is not coded")
        self.gap = not self.times.fits(kind == BIDIRECTIONAL, seconds, ticks, self.resolution)
        if self.interlaced and kind == BIDIRECTIONAL:  # FFmpeg measures field times by the first B picture that it decodes
            raise UnreadableBitstreamError("interlaced B pictures")
        return kind


class _VopTimes:
    """The times of VOPs. FFmpeg drops a B-VOP that is not between its references, as after a lost P-VOP. 6.3.4, 6.3.5."""

    def __init__(self) -> None:
        self.base_s = self.base_before_s = 0
        self.anchor = self.anchor_before = 0

    def begin_group(self, body: bytes) -> None:
        """Take the time code of a group of VOPs."""
        reader = BitReader(body[:3])
        hours, minutes, _, seconds = reader.u(5), reader.u(6), reader.u(1), reader.u(6)
        self.base_s = seconds + 60 * (minutes + 60 * hours)

    def fits(self, bidirectional: bool, seconds: int, ticks: int, resolution: int) -> bool:
        """Take the time of the next VOP; tell whether it is between those of its references."""
        if bidirectional:
            return self.anchor_before < (self.base_before_s + seconds) * resolution + ticks < self.anchor
        self.base_before_s, self.base_s = self.base_s, self.base_s + seconds
        self.anchor_before, self.anchor = self.anchor, self.base_s * resolution + ticks
        return True


def _sections(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield each start code's value and what follows it, up to 256 bytes."""
    at = data.find(START_CODE)
    while 0 <= at < len(data) - 3:
        following = data.find(START_CODE, at + 3)
        end = following if following >= 0 else len(data)
        yield data[at + 3], data[at + 4 : min(end, at + 260)]
        at = following


def _layer(header: bytes) -> tuple[int, bool]:
    """Return vop_time_increment_resolution and `interlaced` of a video object layer; 0 where its form is not read here."""
    try:
        return _read_layer(BitReader(header))
    except DamagedBitstreamError:
        return 0, False


def _read_layer(reader: BitReader) -> tuple[int, bool]:
    reader.u(9)
    version = 1
    if reader.u(1):
        version = reader.u(4)
        reader.u(3)
    if reader.u(4) == 15:
        reader.u(16)
    if reader.u(1):
        reader.u(3)
        if reader.u(1):
            reader.u(79)
    shape = reader.u(2)
    if shape == 3 and version != 1:
        reader.u(4)
    reader.u(1)
    resolution = reader.u(16)
    reader.u(1)
    if reader.u(1):
        reader.u(max((resolution - 1).bit_length(), 1))
    if shape == RECTANGULAR:
        reader.u(1 + 13 + 1 + 13 + 1)
    return resolution, bool(reader.u(1))
