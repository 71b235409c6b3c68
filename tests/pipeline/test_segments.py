"""Segments: what is known of lengths stays in few files, whoever tidies them up, and whenever."""

import json
import multiprocessing
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipeline.segments import MANY_FILES, Durations

Place = tuple[str, dict[str, Any]]


def row(number: int, hint: str = '{"size":1}') -> dict[str, Any]:
    name = f"v{number:03}"
    return {"video_id": name, "uri": f"/videos/{name}.mp4", "source_hint": hint, "duration_s": number + 0.5}


def files(place: Place) -> list[str]:
    url, options = place
    fs, root = fsspec.core.url_to_fs(url, **options)
    fs.invalidate_cache()
    return sorted(fs.find(f"{root}/durations"))


def lengths(place: Place, count: int) -> list[float | None]:
    known = Durations(*place)
    return [known.of(row(number)) for number in range(count)]


def test_files_of_lengths_become_one(place: Place) -> None:
    """Every night a file, until there are many; what each said is known after that as before."""
    for number in range(MANY_FILES - 1):
        night = Durations(*place)
        night.add([row(number)])
        night.tidy()
    assert len(files(place)) == MANY_FILES - 1
    night = Durations(*place)
    night.add([row(MANY_FILES - 1)])
    night.tidy()
    assert len(files(place)) == 1
    assert lengths(place, MANY_FILES) == [number + 0.5 for number in range(MANY_FILES)]
    night.tidy()
    assert len(files(place)) == 1


def _night(url: str, start: int) -> None:
    for number in range(start, start + 3 * MANY_FILES):
        one = Durations(url)
        one.add([row(number)])
        one.tidy()


def test_runs_that_tidy_at_once_lose_no_length(tmp_path: Path) -> None:
    """Three processes add and fold files of each other all the time."""
    count = 3 * MANY_FILES
    context = multiprocessing.get_context("spawn")
    runs = [context.Process(target=_night, args=(str(tmp_path), start)) for start in (0, count, 2 * count)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert [run.exitcode for run in runs] == [0, 0, 0]
    assert lengths((str(tmp_path), {}), 3 * count) == [number + 0.5 for number in range(3 * count)]
    assert len(files((str(tmp_path), {}))) < 2 * MANY_FILES


def test_a_length_that_rotted_is_asked_for_again(tmp_path: Path) -> None:
    """The others are known; a file that is none of ours stops nobody."""
    for number in range(2):
        Durations(str(tmp_path)).add([row(number)])
    rotten = Path(files((str(tmp_path), {}))[0])
    lost = json.loads(rotten.read_text())["duration_s"]
    rotten.write_bytes(rotten.read_bytes()[:-3] + b"\xff}\n")
    assert [known for known in lengths((str(tmp_path), {}), 2) if known is not None] == [2.0 - lost]


@pytest.mark.parametrize("wrong", [{"source_hint": "{}"}, {"duration_s": None}])
def test_a_length_that_nobody_could_look_up_is_not_written(tmp_path: Path, wrong: dict[str, Any]) -> None:
    """A source without a known state would add a file every night."""
    Durations(str(tmp_path)).add([{**row(1), **wrong}])
    assert files((str(tmp_path), {})) == []
