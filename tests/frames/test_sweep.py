"""A short version of `python -m tests.frames`: random files, no frame that is not the one asked for."""

import random
from pathlib import Path

import pytest

from tests.frames.__main__ import checked


@pytest.mark.parametrize("part", range(6))
def test_random_files_show_the_frames_asked_for(part: int, tmp_path: Path) -> None:
    results = [checked(random.Random(f"short {number}"), tmp_path, number) for number in range(12 * part, 12 * part + 12)]
    assert not [result for result in results if result in ("wrong", "refused")]
    assert sum(result.startswith("right") for result in results) >= 10
