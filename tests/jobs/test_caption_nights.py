"""What the files of captions say after nights of videos that come, go and change, and of runs that overlap or find nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import pytest

from jobs.commands import caption
from jobs.commands.caption import CaptionJob
from jobs.runtime.cluster import ClusterConfig
from pipeline.encode.stage import EncodeConfig
from pipeline.errors import ConfigError
from tests.models import tiny_checkpoint

ROOT = Path(__file__).parents[2]
VIDEOS = ROOT / "tests" / "videos"
REDUCER = "nest(keep=16,superset=16)"
Place = tuple[str, dict[str, Any]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_checkpoint(tmp_path_factory.mktemp("nights") / "tiny")


def put(corpus: str, options: dict[str, Any], **videos: str) -> None:
    """Put videos of the tests into a corpus under other names; one that is called "" is removed."""
    fs, root = fsspec.core.url_to_fs(corpus, **options)
    for name, source in videos.items():
        path = f"{root}/{name}.mp4"
        if source:
            fs.makedirs(root, exist_ok=True)
            fs.pipe_file(path, (VIDEOS / source).read_bytes())
        else:
            fs.rm_file(path)


def files(out: str, options: dict[str, Any]) -> dict[str, bytes]:
    fs, root = fsspec.core.url_to_fs(out, **options)
    fs.invalidate_cache()
    return {path.removeprefix(f"{root}/"): fs.cat_file(path) for path in fs.find(root)}


def told(out: str, options: dict[str, Any]) -> dict[str, set[str]]:
    """Return the videos that each kind of file speaks of."""
    found = files(out, options)
    rows = [json.loads(line) for line in found["captions.jsonl"].splitlines()]
    return {
        "captions": {row["video_id"] for row in rows if row["status"] == "ok"},
        "srt": {name[4:-4] for name in found if name.startswith("srt/")},
        "vtt": {name[4:-4] for name in found if name.startswith("vtt/")},
    }


def night(model: str, place: Place, segments: float | None = 4.0, **more: Any) -> dict[str, Any]:
    url, options = place
    config = EncodeConfig(model=model, reducer=REDUCER, device="cpu")
    where = {"corpus": f"{url}/videos", "store": f"{url}/store", "out": f"{url}/out", "storage_options": json.dumps(options)}
    how = {"encode": config, "cluster": ClusterConfig(runner="local"), "max_new_tokens": 4, "segments": segments}
    return caption.run(CaptionJob(**{**where, **how, **more}))


def test_files_follow_the_corpus(model: str, place: Place) -> None:
    """A video that is gone has no row and no subtitles; files of others are let be."""
    url, options = place
    corpus, out = f"{url}/videos", f"{url}/out"
    put(corpus, options, stays="nasa_13013.mp4", goes="testsrc2.mp4", turns="testsrc2_mpeg4.mp4")
    night(model, place)
    assert set(map(frozenset, told(out, options).values())) == {frozenset({"stays", "goes", "turns"})}
    fs, root = fsspec.core.url_to_fs(out, **options)
    fs.pipe_file(f"{root}/srt/by_hand.en.srt", b"mine")
    put(corpus, options, goes="", turns="nasa_13013_rotated.mp4")
    night(model, place)
    assert told(out, options) == {
        "captions": {"stays", "turns"},
        "srt": {"stays", "turns", "by_hand.en"},
        "vtt": {"stays", "turns"},
    }
    put(corpus, options, goes="testsrc2.mp4")
    back = night(model, place)
    assert "goes" in told(out, options)["captions"]
    assert set(back["answer"]["this_run"]) == {"seconds"}  # its tokens are the same, so is its caption
    night(model, place, segments=None)
    assert told(out, options) == {"captions": {"stays", "goes", "turns"}, "srt": {"by_hand.en"}, "vtt": set()}


def test_a_night_without_news_touches_no_file(model: str, tmp_path: Path) -> None:
    """Nothing is written, so nothing is copied or read anew by whoever watches the folder."""
    place: Place = (str(tmp_path), {})
    put(f"{tmp_path}/videos", {}, one="nasa_13013.mp4", two="testsrc2.mp4")
    night(model, place)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    night(model, place)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("lost", ["emptied", "unreachable"])
def test_a_corpus_that_is_not_there_takes_nothing_away(model: str, place: Place, lost: str) -> None:
    """A disk that is not mounted looks like an empty folder: a sentence, and every file as it was."""
    url, options = place
    put(f"{url}/videos", options, one="nasa_13013.mp4", two="testsrc2.mp4")
    night(model, place)
    before = files(f"{url}/out", options)
    if lost == "emptied":
        put(f"{url}/videos", options, one="", two="")
    with pytest.raises(ConfigError, match=r"at least one video|no such"):
        night(model, place, **({"corpus": f"{url}/elsewhere"} if lost == "unreachable" else {}))
    assert files(f"{url}/out", options) == before


def started(model: str, tmp_path: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable, "-m", "jobs.caption", str(tmp_path / "videos"), "--store", str(tmp_path / "store"),
        "--out", str(tmp_path / "out"), "--model", model, "--reducer", REDUCER, "--runner", "local",
        "--max-new-tokens", "4", "--segments", "4",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)


def held_when_it_has_listed(process: subprocess.Popen[bytes]) -> None:
    assert process.stderr is not None
    assert any(b"to encode with" in line for line in process.stderr)
    process.send_signal(signal.SIGSTOP)


def test_the_files_of_runs_that_overlap_hold_what_either_saw(model: str, tmp_path: Path) -> None:
    """A run sleeps after it listed the corpus, another sees a newer one and ends first; the sleeper takes nothing from it.

    A run that began after both were done decides.
    """
    out = f"{tmp_path}/out"
    put(f"{tmp_path}/videos", {}, stays="testsrc2.mp4", goes="nasa_13013.mp4")
    sleeper = started(model, tmp_path)
    held_when_it_has_listed(sleeper)
    put(f"{tmp_path}/videos", {}, goes="", comes="testsrc2_mpeg4.mp4")
    other = started(model, tmp_path)
    assert other.communicate()[1] is not None
    assert other.returncode == 0
    assert told(out, {})["captions"] == {"stays", "comes"}
    saved = shutil.copytree(tmp_path / "videos", tmp_path / "saved")
    shutil.copy2(VIDEOS / "nasa_13013.mp4", tmp_path / "videos" / "goes.mp4")  # as it was when the sleeper listed it
    sleeper.send_signal(signal.SIGCONT)
    sleeper.communicate()
    assert sleeper.returncode == 0
    everything = {"stays", "goes", "comes"}
    assert told(out, {}) == {"captions": everything, "srt": everything, "vtt": everything}
    shutil.rmtree(tmp_path / "videos")
    saved.rename(tmp_path / "videos")
    after = started(model, tmp_path)
    after.communicate()
    left = {"stays", "comes"}
    assert told(out, {}) == {"captions": left, "srt": left, "vtt": left}
    assert len(list((tmp_path / "out" / "views").iterdir())) == 1
