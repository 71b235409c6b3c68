"""Folders for videos at work: private while their owner lives, removed once it is gone."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.decode.config import DecodeConfig
from pipeline.decode.stage import Decode
from pipeline.decode.tempdirs import PREFIX, scratch, sweep
from pipeline.schema import CORPUS
from tests.poison import craft

ROOT = Path(__file__).parents[2]
DECODES = """
import sys
import pyarrow as pa
from pipeline.decode.config import DecodeConfig
from pipeline.decode.stage import Decode
from pipeline.schema import CORPUS
rows = [{"video_id": "v", "uri": sys.argv[1], "source_hint": "{}"}]
with Decode(DecodeConfig(deadline_s=3600), side_px=32) as stage:
    print(stage(pa.Table.from_pylist(rows, schema=CORPUS)).drop_columns(["frames"]).to_pylist())
"""


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files that nobody else uses."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def has_decoder(group: int) -> bool:
    """Tell whether a process group has started its decoder: before, it holds the lock of its parent's folder."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getpgid(int(process.name)) == group and b"pipeline.decode.worker" in (process / "cmdline").read_bytes():
                return True
    return False


@contextlib.contextmanager
def decoding(video: Path, disk: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that decodes a video for long; yields once its decoder has it. Its group ends with the block."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(disk), "OMP_NUM_THREADS": "1"}
    before = set(disk.glob("*/video"))
    said = disk.parent / f"said-{len(before)}"
    with said.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-c", DECODES, str(video)], env=environment, stdout=out, stderr=out, start_new_session=True
        )
    try:
        while not (set(disk.glob("*/video")) - before and has_decoder(process.pid)):
            assert process.poll() is None, said.read_text()
            time.sleep(0.02)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the child of a killed stage decodes on to its deadline
        process.wait()


def test_what_a_killed_stage_leaves_is_removed_when_the_next_one_starts(disk: Path, tmp_path: Path) -> None:
    """kill -9 in the middle of a video; the folder of a stage that still decodes is let be, and goes with its own end."""
    bomb = craft.slow(tmp_path / "slow.webm")
    with decoding(bomb, disk) as killed:
        (left,) = disk.iterdir()
        with decoding(bomb, disk) as living:
            killed.send_signal(signal.SIGKILL)
            assert killed.wait() == -signal.SIGKILL
            assert left.is_dir()
            with Decode(DecodeConfig(), side_px=32):
                (kept,) = disk.iterdir()
            assert kept != left
            assert (kept / "video").is_file()
            living.kill()
            living.wait()
    with Decode(DecodeConfig(), side_px=32):
        assert list(disk.iterdir()) == []


def test_only_folders_of_this_name_and_of_nobody_are_removed(disk: Path, tmp_path: Path) -> None:
    """No link is followed, no file taken, no other folder touched."""
    for name in ("other", f"{PREFIX}left", "framefold-older"):
        (disk / name).mkdir()
        (disk / name / "video").write_bytes(b"x")
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "video").write_bytes(b"x")
    (disk / f"{PREFIX}link").symlink_to(tmp_path / "target")
    (disk / f"{PREFIX}file").write_bytes(b"x")
    with scratch() as held:
        assert sweep() == 1
        assert held.is_dir()
    found = sorted(path.name for path in disk.iterdir())
    assert found == [f"{PREFIX}file", f"{PREFIX}link", "framefold-older", "other"]
    assert (tmp_path / "target" / "video").is_file()


def test_failure_of_a_file_does_not_name_the_folder_that_it_lay_in(disk: Path, tmp_path: Path) -> None:
    """It is stored, and would differ from run to run."""
    (tmp_path / "half.flv").write_bytes(b"FLV\x01")
    rows = [{"video_id": "v", "uri": str(tmp_path / "half.flv"), "source_hint": "{}"}]
    with Decode(DecodeConfig(), side_px=32) as stage:
        (found,) = stage(pa.Table.from_pylist(rows, schema=CORPUS)).to_pylist()
    assert found["error_class"] == "CORRUPT"
    assert "End of file" in found["error"]
    assert PREFIX not in found["error"]


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a folder to another user needs root")
def test_a_folder_of_another_user_is_let_be(disk: Path) -> None:
    """Even by root, who could remove it."""
    (disk / f"{PREFIX}theirs").mkdir()
    os.chown(disk / f"{PREFIX}theirs", 12345, 12345)
    assert sweep() == 0
    assert (disk / f"{PREFIX}theirs").is_dir()


def test_folders_that_are_made_while_others_sweep_are_never_taken(disk: Path) -> None:
    """A sweep may find a folder before its owner has locked it: then the owner makes another."""
    done = threading.Event()

    def sweeps() -> None:
        while not done.is_set():
            sweep()

    threads = [threading.Thread(target=sweeps) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(1500):
            with scratch() as folder:
                (folder / "video").write_bytes(b"x")
                assert (folder / "video").read_bytes() == b"x"
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert list(disk.iterdir()) == []
