"""The parser of each codec that is read without decoding."""

from collections.abc import Callable

from pipeline.decode.bitstream.h264 import H264Parser
from pipeline.decode.bitstream.hevc import HevcParser
from pipeline.decode.bitstream.mpeg import Mpeg4Parser, Mpeg12Parser
from pipeline.decode.bitstream.picture import BitstreamParser, Picture
from pipeline.decode.bitstream.vpx import Av1Parser, Vp8Parser, Vp9Parser

PARSERS: dict[str, Callable[[bytes], BitstreamParser]] = {
    "h264": H264Parser,
    "hevc": HevcParser,
    "mpeg4": Mpeg4Parser,
    "mpeg2video": Mpeg12Parser,
    "mpeg1video": Mpeg12Parser,
    "vp8": Vp8Parser,
    "vp9": Vp9Parser,
    "av1": Av1Parser,
}
"""By the name of the codec in FFmpeg."""


class IntraParser:
    """Packets of a codec in which every picture stands for itself."""

    def __init__(self, extradata: bytes) -> None:
        del extradata
        self.decoded = 0

    def picture(self, data: bytes) -> Picture | None:
        """Return the picture in a packet, see `BitstreamParser`."""
        del data
        self.decoded += 1
        return Picture(start=True, reference=False, sequence=0, order=self.decoded)


def parser_of(codec: str, *, intra_only: bool, extradata: bytes) -> BitstreamParser | None:
    """Return the parser of a stream, None where its codec is not read here."""
    if codec in PARSERS:
        return PARSERS[codec](extradata)
    return IntraParser(extradata) if intra_only else None
