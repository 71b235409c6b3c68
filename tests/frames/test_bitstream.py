"""Headers of pictures, built bit by bit: what encoders at hand do not write."""

import pytest

from pipeline.decode.bitstream.bits import BitReader, annex_b_units, prefixed_units, unescaped
from pipeline.decode.bitstream.h264 import recovers_at_once
from pipeline.decode.bitstream.parameters import ParameterSets
from pipeline.decode.bitstream.picture import DamagedBitstreamError, UnreadableBitstreamError
from pipeline.decode.bitstream.vpx import Av1Parser, Vp8Parser, Vp9Parser


def packed(bits: str) -> bytes:
    """Return bits, with a stop bit, as bytes."""
    bits += "1"
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def ue(number: int) -> str:
    """Return an unsigned Exp-Golomb number as bits."""
    bits = f"{number + 1:b}"
    return "0" * (len(bits) - 1) + bits


def recovery(count: int, exact: int, broken: int, before: bytes = b"") -> bytes:
    """Return an H.264 SEI unit with a recovery point, perhaps behind another message."""
    payload = packed(f"{ue(count)}{exact}{broken}00")
    return b"\x06" + before + bytes([6, len(payload)]) + payload + b"\x80"


@pytest.mark.parametrize("before", [b"", bytes([5, 20]) + bytes(range(1, 21)), b"\xff\x05\xff\x02" + b"\x11" * 257])
@pytest.mark.parametrize(
    ("count", "exact", "broken", "expected"),
    [(0, 1, 0, True), (1, 1, 0, False), (0, 0, 0, False), (0, 1, 1, False), (7, 1, 0, False)],
)
def test_recovery_point_is_one_where_decoding_is_exact_at_once(
    count: int, exact: int, broken: int, expected: bool, before: bytes
) -> None:
    """Nothing left to recover, exact match, no broken link; other messages may stand before it."""
    assert recovers_at_once(recovery(count, exact, broken, before)) is expected


@pytest.mark.parametrize("number", [0, 1, 2, 7, 8, 254, 65535, 1 << 20])
def test_exp_golomb_numbers_are_read_back(number: int) -> None:
    reader = BitReader(packed(ue(number) + ue(3)))
    assert (reader.ue(), reader.ue()) == (number, 3)


def test_header_that_ends_early_is_damage() -> None:
    for bits in ("", "0", "0" * 30):
        with pytest.raises(DamagedBitstreamError):
            BitReader(packed(bits)[: len(bits) // 8]).ue()


def test_emulation_prevention_is_taken_out() -> None:
    assert unescaped(b"\x00\x00\x03\x00\x00\x03\x01\x00\x03") == b"\x00\x00\x00\x00\x01\x00\x03"


def test_units_are_the_same_behind_start_codes_and_lengths() -> None:
    units = [b"\x67\x01\x02", b"\x68\x03", b"\x65" + b"\x04" * 300]
    annex_b = b"\x00\x00\x00\x01" + b"\x00\x00\x01".join(units) + b"\x00\x00"
    assert list(annex_b_units(annex_b)) == units
    for size in (1, 2, 4):
        if size == 1:
            units[2] = units[2][:200]
        assert list(prefixed_units(b"".join(len(u).to_bytes(size, "big") + u for u in units), size)) == units
    with pytest.raises(DamagedBitstreamError):
        list(prefixed_units(b"\x00\x00\x00\x09\x67", 4))


def test_point_whose_parameter_sets_came_before_it_is_not_complete() -> None:
    """A decoder that begins there would have the first version."""
    sets = ParameterSets()
    sets.before_first(("sps", 0), b"first")
    sets.begin_packet()
    assert sets.complete_from_here()
    sets.begin_packet()
    sets.add(("sps", 0), b"second")
    assert sets.complete_from_here()
    sets.begin_packet()
    assert not sets.complete_from_here()
    sets.begin_packet()
    sets.add(("sps", 0), b"second")
    assert sets.complete_from_here()


@pytest.mark.parametrize(
    ("data", "start", "shown"),
    [(b"\x10\x00\x00\x9d\x01\x2a", True, True), (b"\x00\x00\x00\x9d\x01\x2a", False, False), (b"\x11\x00\x00", False, True)],
)
def test_vp8_frame_is_a_start_if_it_is_a_key_frame_and_shown(data: bytes, start: bool, shown: bool) -> None:
    picture = Vp8Parser(b"").picture(data)
    assert picture is not None
    assert (picture.start, picture.shown) == (start, shown)


def test_vp9_packet_that_shows_an_earlier_frame_again_is_no_start() -> None:
    """And a superframe whose key frame is hidden is none either."""
    again, key, hidden_key, inter = b"\x88\x00", b"\x82\x00", b"\x80\x00", b"\x86\x00"
    marker = bytes([0xC1])
    for frames, start in ((again, False), (key, True), (hidden_key + inter + marker + b"\x02\x02" + marker, False)):
        picture = Vp9Parser(b"").picture(frames)
        assert picture is not None
        assert (picture.start, picture.shown) == (start, True)
    with pytest.raises(UnreadableBitstreamError):
        Vp9Parser(b"").picture(key + key + marker + b"\x02\x02" + marker)


def test_av1_unit_is_a_start_only_with_a_sequence_header_and_a_shown_key_frame() -> None:
    sequence, key, forward_key, again = b"\x0a\x01\x00", b"\x32\x01\x10", b"\x32\x01\x00", b"\x1a\x01\x80"
    assert Av1Parser(b"").picture(sequence + key).start  # type: ignore[union-attr]
    assert not Av1Parser(b"").picture(key).start  # type: ignore[union-attr]
    assert not Av1Parser(b"").picture(sequence + forward_key).shown  # type: ignore[union-attr]
    assert not Av1Parser(b"").picture(sequence + again).start  # type: ignore[union-attr]
