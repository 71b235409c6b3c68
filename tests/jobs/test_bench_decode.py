"""`framefold bench decode`: each method has its line and its frames beside ours; a decoder that fails costs its file."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.bench.decode import Result, mean, ratio_to
from jobs.bench.decode_lane import Cost, Lane, MethodFailedError
from jobs.bench.decode_methods import (
    DECORD,
    EXACT,
    KEYFRAME,
    METHODS,
    PYAV_SEEK,
    PYAV_SEQUENTIAL,
    TORCHCODEC,
    differing,
    keyframe,
)
from jobs.bench.decode_set import QUICK, SETS, Files, written
from pipeline.decode.sampling import frame_indices
from tests.command import ROOT, afresh, report
from tests.frames.checking import clip_of, opened
from tests.frames.numbered import numbers_of
from tests.frames.writing import Coding, write

VIDEOS = ROOT / "tests" / "videos"
ALWAYS = {EXACT, KEYFRAME, DECORD, PYAV_SEEK, PYAV_SEQUENTIAL}


def rows(out: str) -> dict[str, list[str]]:
    """The line of each method, as words behind its name."""
    return {name: line[len(name) :].split() for line in out.splitlines() for name in METHODS if line.startswith(name)}


def test_quick_set_has_a_line_and_a_report_for_each_method(tmp_path: Path) -> None:
    """Every method reads all frames and all are the same; what cannot be loaded says so; the set is kept and used again."""
    args = ("bench", "decode", "--quick", "--repeat", "1", "--keep", str(tmp_path / "set"))
    first = afresh(*args)
    assert first.returncode == 0, first.stderr
    told = report(first)["sets"]["96x64"]
    lines = rows(first.stdout)
    assert set(lines) == set(METHODS)
    assert ALWAYS <= set(told) <= set(METHODS)
    for name in ALWAYS:
        assert (told[name]["frames"], told[name]["differing"], told[name]["failed"]) == (16, 0, {})
        assert told[name]["cpu_s"] > 0
        assert lines[name][0] == f"{told[name]['cpu_s']:.4f}"
        assert lines[name][2] == f"{told[name]['to_decord']:.2f}"
    assert told[DECORD]["to_decord"] == 1
    if TORCHCODEC not in told:
        assert lines[TORCHCODEC][:3] == ["cannot", "be", "loaded:"]
    assert report(first)["child_start_cpu_s"] > 0
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "set").iterdir()}
    assert len(before) == QUICK[0].count
    assert report(afresh(*args))["sets"].keys() == {"96x64"}
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "set").iterdir()} == before


def test_wrong_frames_of_other_methods_are_counted_and_unreadable_files_are_named(tmp_path: Path) -> None:
    """decord misses frames of open GOPs, seeking by time those of H.264 in AVI; a text is no video for any method."""
    private = "open-gop=1:bframes=3:b-adapt=0:scenecut=0"
    open_gop = Coding(options={"preset": "veryfast", "g": "12", "crf": "14"}, private=private)
    paths = [write(tmp_path / name, 90, open_gop) for name in ("a.mp4", "b.avi")]
    (tmp_path / "c.mp4").write_text("no video")
    ran = afresh("bench", "decode", *map(str, paths), str(tmp_path / "c.mp4"), "--repeat", "1")
    assert ran.returncode == 0, ran.stderr
    told = report(ran)["sets"]["given"]
    assert told[EXACT]["differing"] == 0
    assert told[EXACT]["failed"].keys() == {"c.mp4"}
    assert told[DECORD]["differing"] > 0
    assert told[DECORD]["levels"] > 1
    assert told[PYAV_SEQUENTIAL]["differing"] == 0
    assert all("c.mp4" in told[name]["failed"] for name in ALWAYS)
    assert f"{told[DECORD]['differing']}, by" in ran.stdout
    assert "failed on c.mp4: " in ran.stdout
    assert json.loads(ran.stdout.splitlines()[-1])["bench"] == "decode"  # nothing that a native library prints comes behind it


@pytest.mark.parametrize("name", sorted(ALWAYS - {KEYFRAME}))
def test_method_returns_the_frames_asked_for(name: str, tmp_path: Path) -> None:
    """On a file with which none has difficulties, numbers read off the pictures."""
    path = write(tmp_path / "a.mp4", 60, Coding(options={"g": "10", "crf": "10"}, private="bframes=0:scenecut=0"))
    assert numbers_of(METHODS[name](path, 5)) == frame_indices(60, 5)


def test_method_keyframe_returns_random_access_points(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", 60, Coding(options={"g": "10", "crf": "10"}, private="bframes=0:scenecut=0:min-keyint=10"))
    assert numbers_of(keyframe(path, 4)) == [0, 20, 40, 50]


def test_method_that_takes_too_long_or_dies_is_ended_and_answers_again() -> None:
    path = VIDEOS / "unordered.mov"
    lane = Lane(EXACT, 8, 0.0)
    try:
        with pytest.raises(MethodFailedError, match="within 0 s"):
            lane.cost(path)
        assert lane.process is None
        lane.deadline_s = 60.0
        assert np.array_equal(lane.frames_of(path), clip_of(path).frames)
        lane.process.kill()
        lane.process.join()
        with pytest.raises(MethodFailedError, match="crashed"):
            lane.cost(path)
        with pytest.raises(MethodFailedError, match="CORRUPT"):
            lane.cost(ROOT / "README.md")
        assert lane.cost(path).cpu_s > 0
    finally:
        lane.close()


@given(st.integers(1, 8), st.data())
def test_differing_frames_are_counted_by_their_bytes(frames: int, data: st.DataObject) -> None:
    ours = np.random.default_rng(frames).integers(0, 256, (frames, 4, 6, 3), dtype=np.uint8)
    changed = data.draw(st.sets(st.integers(0, frames - 1)))
    theirs = ours.copy()
    for index in changed:
        theirs[index, 1, 2, 0] ^= 255
    count, levels = differing(ours, theirs)
    assert count == len(changed)
    assert (levels > 0) == bool(changed)
    assert differing(ours, theirs[:, :2]) == (frames, 255.0)


def test_ratio_is_taken_over_the_files_that_both_methods_read() -> None:
    """A file that one of them cannot read must not count for the other."""
    a, b, c = Path("a"), Path("b"), Path("c")
    ours = Result(best={a: Cost(1.0, 1.0), b: Cost(2.0, 3.0), c: Cost(90.0, 90.0)})
    theirs = Result(best={a: Cost(2.0, 2.0), b: Cost(4.0, 4.0)})
    assert ratio_to(ours, theirs) == 0.5
    assert ratio_to(theirs, ours) == 2.0
    assert ratio_to(ours, Result()) is None
    assert (mean(theirs, "cpu_s"), mean(theirs, "wall_s"), mean(Result(), "cpu_s")) == (3.0, 3.0, None)


def test_written_files_are_coded_as_their_kind_says(tmp_path: Path) -> None:
    """Frames, size, GOP and B-frames; each file another; the full set is the one that the documents name."""
    files = Files(name="x", count=2, width=64, height=48, seconds=3, bits_per_s=100_000, preset="veryfast", gop=25, b_frames=3)
    paths = written(files, tmp_path)
    assert paths[0].read_bytes() != paths[1].read_bytes()
    for path in paths:
        found = opened(path)
        assert (found.scan.codec, found.scan.size, len(found.scan.packets)) == ("h264", (64, 48), 75)
        assert found.planned is not None
        assert found.order.shown != tuple(range(75))  # type: ignore[union-attr]
        assert {0, 25, 50} <= set(found.order.starts)  # type: ignore[union-attr]
    assert [(one.count, one.width, one.height, one.seconds, one.preset, one.gop, one.b_frames) for one in SETS] == [
        (5, 320, 240, 10, "medium", 250, 3),
        (2, 1280, 720, 120, "medium", 250, 3),
    ]


@pytest.mark.parametrize(
    ("args", "words"),
    [(["gone.mp4"], "gone.mp4: no such file"), (["--repeat", "0"], "repeat must be"), (["--deadline-s", "0"], "deadline_s")],
)
def test_wrong_settings_exit_2(args: list[str], words: str) -> None:
    ran = afresh("bench", "decode", *args)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert words in ran.stderr
