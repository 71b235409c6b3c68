"""The process that decodes: it dies, hangs and grows, costs one video each time, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.decode.config import DecodeConfig
from pipeline.decode.stage import Decode
from tests.pipeline.decoding import VIDEOS, corpus


def test_a_video_that_takes_too_long_is_killed_and_the_next_one_decodes() -> None:
    """The deadline ends the child; a new one serves what follows."""
    with Decode(DecodeConfig(deadline_s=0.001), side_px=32) as stage:
        row = stage(corpus(str(VIDEOS / "nasa_13013.mp4"))).to_pylist()[0]
        assert row["error_class"] == "TIMEOUT"
        assert row["source_sha256"]
        stage.child.config = DecodeConfig(deadline_s=60)
        assert stage(corpus(str(VIDEOS / "testsrc2.mp4"))).to_pylist()[0]["error_class"] is None


def test_a_child_that_dies_costs_one_video(stage: Decode) -> None:
    """A crash is a class of failure; the videos after it are decoded by a new child."""
    stage(corpus(str(VIDEOS / "testsrc2.mp4")))
    assert stage.child.process is not None
    os.kill(stage.child.process.pid, signal.SIGSTOP)
    os.kill(stage.child.process.pid, signal.SIGSEGV)
    os.kill(stage.child.process.pid, signal.SIGCONT)
    uri = str(VIDEOS / "unordered.mov")
    classes = [row["error_class"] for row in stage(corpus(uri, uri)).to_pylist()]
    assert classes[0] in ("CRASHED", None)
    assert classes[1] is None


def test_memory_is_limited() -> None:
    """A clip that needs more than its share is refused, not the machine exhausted."""
    with Decode(DecodeConfig(memory_mb=8), side_px=32) as stage:
        row = stage(corpus(str(VIDEOS / "testsrc2.mp4"))).to_pylist()[0]
    assert row["error_class"] in ("OUT_OF_MEMORY", "CRASHED")


def test_the_child_ends_when_its_parent_is_gone() -> None:
    """Closing the pipe is enough; nothing is left behind by a killed actor."""
    with Decode(DecodeConfig(), side_px=32) as stage:
        stage(corpus(str(VIDEOS / "unordered.mov")))
        process = stage.child.process
        assert process is not None
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait() == 0


def test_children_are_replaced_after_some_videos() -> None:
    """Native leaks cannot add up."""
    with Decode(DecodeConfig(recycle=2), side_px=32) as stage:
        uri = str(VIDEOS / "unordered.mov")
        pids = set()
        for _ in range(4):
            stage(corpus(uri))
            assert stage.child.process is not None
            pids.add(stage.child.process.pid)
    assert len(pids) == 2
    assert stage.child.ended == {"videos": 1}


@pytest.mark.parametrize(("recycle_mb", "ended"), [(1, {"memory": 2}), (0, {})])
def test_a_child_that_keeps_memory_is_replaced(recycle_mb: int, ended: dict[str, int]) -> None:
    """Measured between videos; 0 leaves it be."""
    with Decode(DecodeConfig(recycle_mb=recycle_mb), side_px=32) as stage:
        rows = stage(corpus(*[str(VIDEOS / "testsrc2.mp4")] * 3))
    assert rows["error_class"].null_count == 3
    assert stage.child.ended == ended


def test_a_child_may_write_no_file() -> None:
    """Neither by what a hostile video makes it do, nor by a core dump when it crashes."""
    with Decode(DecodeConfig(), side_px=32) as stage:
        stage(corpus(str(VIDEOS / "unordered.mov")))
        assert stage.child.process is not None
        limits = Path(f"/proc/{stage.child.process.pid}/limits").read_text()
    found = {line[:26].strip(): line[26:].split()[:2] for line in limits.splitlines()}
    assert found["Max file size"] == found["Max core file size"] == ["0", "0"]


def test_an_answer_of_another_size_is_not_believed() -> None:
    """What has read a hostile file may answer anything."""
    with Decode(DecodeConfig(), side_px=32) as stage:
        uri = str(VIDEOS / "unordered.mov")
        stage(corpus(uri))
        stage.child.side_px = 64
        assert stage(corpus(uri))["error_class"].to_pylist() == ["CRASHED"]
        assert stage(corpus(uri))["error_class"].to_pylist() == [None]


FOREIGN_DECORD = """
import os, signal, time
class DECORDError(Exception): pass
class logging:
    QUIET = 0
    set_level = staticmethod(lambda level: None)
def cpu(number): return number
def VideoReader(*given, **options): {fault}
"""
FAULTS = {"hangs": "time.sleep(3600)", "crashes": "os.kill(os.getpid(), signal.SIGSEGV)"}


@pytest.mark.parametrize("fault", FAULTS)
def test_video_on_which_decord_fails_is_read_by_pyav_in_a_second_try(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module of that name hangs or crashes inside the child, as the library does with the GIL held."""
    (tmp_path / "decord.py").write_text(FOREIGN_DECORD.format(fault=FAULTS[fault]))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Decode(DecodeConfig(decoder="decord", deadline_s=8), side_px=32) as stage:
        row = stage(corpus(str(VIDEOS / "testsrc2.mp4"))).to_pylist()[0]
        assert (row["error_class"], row["decoder"]) == (None, "pyav")
        assert sum(stage.child.ended.values()) == 1


def test_child_starts_without_the_libraries_of_models() -> None:
    """Neither torch, nor Arrow, nor decord where it is not asked for: they would cost seconds at every start."""
    loaded = "import sys; from pipeline.decode import worker; worker._warm_up(False); print(*sorted(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "pyarrow", "transformers", "decord", "fsspec"} & set(modules)
    assert {"av", "PIL", "numpy"} <= set(modules)
