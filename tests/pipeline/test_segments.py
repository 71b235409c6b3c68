"""Segments: what is known of lengths stays in few files, whoever tidies them up, and whenever."""

import json
import multiprocessing
import shutil
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.listing import read_corpus
from pipeline.corpus.segments import MANY_FILES, Durations, cut, escaped, file_of, segment_rows, span_of
from pipeline.decode.config import DecodeConfig
from pipeline.decode.stage import Decode
from pipeline.errors import ConfigError

VIDEOS = Path(__file__).parents[1] / "videos"
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


PARTS = ("#", "%23", "%2523", "%", "25", "t=0.000,4.000", "t=1,2", "a", ".mp4")
NAMES = st.lists(st.sampled_from(PARTS), min_size=1, max_size=6).map("".join)


@given(NAMES, NAMES)
def test_a_file_has_an_id_of_its_own_whatever_it_is_called(one: str, other: str) -> None:
    """No whole file has the id of a segment, no two have the same; the way back leads to the name."""
    assert span_of(escaped(one))[1] is None
    assert file_of(escaped(one)) == one
    assert (escaped(one) == escaped(other)) == (one == other)
    segment = segment_rows({"video_id": escaped(one), "uri": escaped(one), "source_hint": "{}"}, 4.0, 4.0)[0]
    assert file_of(segment["uri"]) == one
    assert span_of(segment["video_id"]) == (escaped(one), (0.0, 4.0))


@pytest.mark.parametrize("name", ["film", "a#b", "a#t=1,2", "50% #t=now", "a%20b", "http://x/a%23t=0.000,4.000"])
def test_ids_of_other_names_are_what_they_were(name: str) -> None:
    assert escaped(name) == name == file_of(name)


def test_a_file_called_like_a_segment_stands_beside_it(tmp_path: Path) -> None:
    """Four seconds of one film, and another film that has their name, with and without an ending: each gives its own frames."""
    shutil.copy2(VIDEOS / "nasa_13013.mp4", tmp_path / "film.mp4")
    shutil.copy2(VIDEOS / "testsrc2.mp4", tmp_path / "film#t=0.000,4.000.mp4")
    shutil.copy2(VIDEOS / "testsrc2_mpeg4.mp4", tmp_path / "film.mp4#t=0.000,4.000")
    corpus = read_corpus(f"{tmp_path}/*")
    assert corpus["video_id"].to_pylist() == ["film", "film%23t=0.000,4.000", "film.mp4#t=0.000,4"]
    with Decode(DecodeConfig(), side_px=28) as stage:
        parts = cut(corpus, 4.0, Durations(str(tmp_path / "store")), lambda videos: iter([stage.measure(videos)]))
        rows = {row["video_id"]: row for row in stage(parts).to_pylist()}
    assert {row["error_class"] for row in rows.values()} == {None}
    sources = {name: row["source_bytes"] for name, row in rows.items() if span_of(name)[1][0] == 0}
    assert sources == {
        "film#t=0.000,4.000": (VIDEOS / "nasa_13013.mp4").stat().st_size,
        "film%23t=0.000,4.000#t=0.000,2.000": (VIDEOS / "testsrc2.mp4").stat().st_size,
        "film.mp4#t=0.000,4#t=0.000,0.000": (VIDEOS / "testsrc2_mpeg4.mp4").stat().st_size,
    }


def test_a_manifest_may_name_segments_and_must_mean_it(tmp_path: Path) -> None:
    """They are cut no further; an id that names a segment of which the uri knows nothing is refused."""
    film = VIDEOS / "nasa_13013.mp4"
    manifest = tmp_path / "some.csv"
    manifest.write_text(f'video_id,uri\n"film#t=4.000,8.000","{film}#t=4.000,8.000"\n')
    corpus = read_corpus(str(manifest))
    assert json.loads(corpus["source_hint"][0].as_py())["size"] == film.stat().st_size
    with Decode(DecodeConfig(), side_px=28) as stage:
        parts = cut(corpus, 2.0, Durations(str(tmp_path / "store")), lambda videos: iter([stage.measure(videos)]))
        times = stage(parts)["timestamps_s"].to_pylist()
    assert [(min(one) >= 4.0, max(one) < 8.0) for one in times] == [(True, True)]
    manifest.write_text(f'video_id,uri\n"film#t=4.000,8.000","{film}"\n')
    with pytest.raises(ConfigError, match="names a segment"):
        read_corpus(str(manifest))
