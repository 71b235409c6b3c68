"""Times of frames: those of the file where they can be trusted, in display order, from zero on."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from pipeline.decode.order import display_times
from pipeline.decode.scan import Scan
from tests.frames.checking import opened
from tests.frames.writing import write

STEP = 1 / 25


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Scan:
    """A real scan of 25 frames per second, with a tick of a millisecond."""
    found = opened(write(tmp_path_factory.mktemp("times") / "v.mp4", 4)).scan
    return replace(found, tick_s=Fraction(1, 1000), rate=Fraction(25))


CASES: dict[str, tuple[list[int | None], list[float]]] = {
    "rising": ([100, 140, 180, 220], [0, 0.04, 0.08, 0.12]),
    "rising with a pause": ([0, 40, 5000, 5040], [0, 0.04, 5, 5.04]),
    "negative": ([-80, -40, 0, 40], [0, 0.04, 0.08, 0.12]),
    "one frame": ([77], [0]),
    "none known": ([None] * 4, [0, 0.04, 0.08, 0.12]),
    "decode order": ([0, 120, 80, 40, 160, 280, 240, 200], [index * STEP for index in range(8)]),
    "joined": ([0, 40, 80, 120, 160, 0, 40, 80, 120, 160], [index * STEP for index in range(10)]),
    "all the same": ([0] * 4, [0, 0.04, 0.08, 0.12]),
    "the last one missing": ([0, 40, 1000, 1040, None], [0, 0.04, 1, 1.04, 1.08]),
    "the first one missing": ([None, 40, 80, 120], [0, 0.04, 0.08, 0.12]),
    "one in ten known": ([0, *[None] * 9, 400, *[None] * 4], [index * STEP for index in range(15)]),
    "known ones that fit no rate": ([0, *[None] * 9, 9000, *[None] * 4], [index * STEP for index in range(15)]),
}


@pytest.mark.parametrize("name", CASES)
def test_times_of_frames_follow_from_what_is_known(name: str, scanned: Scan) -> None:
    pts, expected = CASES[name]
    assert display_times(scanned, pts) == pytest.approx(expected, abs=1e-6)


def test_stream_without_rate_and_times_has_25_frames_per_second(scanned: Scan) -> None:
    times = display_times(replace(scanned, rate=None, tick_s=Fraction(0)), [None] * 3)
    assert times == pytest.approx([0, 0.04, 0.08])


def test_times_of_a_raw_stream_follow_from_its_rate(tmp_path: Path) -> None:
    clip = opened(write(tmp_path / "v.h264", 57)).clip()
    assert clip.timestamps_s == pytest.approx([index * STEP for index in (0, 8, 16, 24, 32, 40, 48, 56)], abs=0.001)
