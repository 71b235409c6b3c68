"""What one packet says about the picture in it, for every codec."""

from dataclasses import dataclass
from typing import Protocol


class UnreadableBitstreamError(ValueError):
    """The bitstream has a form that is not read here: only decoding from the beginning can tell its frames."""


class DamagedBitstreamError(UnreadableBitstreamError):
    """The headers of a packet contradict themselves or end early."""


@dataclass(kw_only=True, slots=True)  # not frozen: made for every packet, and three times as fast
class Picture:
    """One coded picture, as its headers describe it."""

    start: bool
    """A true random-access point: decoding may begin here, and what is shown from here on needs nothing before it."""
    reference: bool
    """Whether other pictures may be predicted from it. One that is no reference may be left out."""
    shown: bool = True
    """Whether a frame comes out for it."""
    sequence: int
    """Counted up where the display order begins again: every picture of one sequence is shown before those of the next."""
    order: int
    """Rank within the sequence; pictures of equal rank are shown in decode order."""
    leading: bool = False
    """Not decodable when decoding begins at the random-access point it follows (HEVC: RASL)."""
    independent: bool = False
    """Decodable from the random-access point it follows although it is shown before it (HEVC: RADL, MPEG-2: closed GOP)."""
    gap: bool = False
    """A reference picture is missing right before this one."""
    parameters: bool = True
    """Decoding from here needs no parameter set but those this packet carries, or that never change."""


LONGEST_PLACEHOLDER = 8
"""Bytes; longer packets without any unit were overwritten."""


def check_units(data: bytes, units: int) -> None:
    """Raise DamagedBitstreamError where a packet has content and none of the units it should consist of."""
    if not units and len(data) > LONGEST_PLACEHOLDER:
        raise DamagedBitstreamError("the packet holds nothing that can be read")


class BitstreamParser(Protocol):
    """Reads the packets of one stream in decode order."""

    def picture(self, data: bytes) -> Picture | None:
        """Return the picture in a packet; None where the packet holds parameter sets or messages only.

        Raises:
            UnreadableBitstreamError: the packet holds several pictures, or a form that is not read here.
        """
