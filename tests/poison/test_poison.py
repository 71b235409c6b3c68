"""Damaged and hostile files through the real decode stage: each is a clip or a class, and the stage goes on."""

import json
import signal
import subprocess
import sys
import threading
import zipfile
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.decode.config import DecodeConfig
from pipeline.decode.stage import Decode
from pipeline.schema import CORPUS
from tests.poison import craft
from tests.poison.leaks import measured
from tests.poison.mutate import KINDS, VIDEOS, mutants, seeds
from tests.poison.push import NEIGHBOUR, one, push

ROOT = Path(__file__).parents[2]


def corpus(*paths: Path) -> pa.Table:
    rows = [{"video_id": path.name, "uri": str(path), "source_hint": "{}"} for path in paths]
    return pa.Table.from_pylist(rows, schema=CORPUS)


def test_damaged_files_are_clips_or_classes_and_spare_their_neighbours() -> None:
    """150 of those that `python -m tests.poison` makes by the thousand; every kind on every video."""
    with Decode(DecodeConfig(deadline_s=60), side_px=56) as stage:
        report = push(stage, mutants(seeds(VIDEOS), 150, seed=1))
    assert report.files == 150
    assert set(report.kinds) == set(KINDS)
    assert report.faults == []
    assert report.classes["decoded"] > 20
    assert report.classes["CORRUPT"] > 20


def test_the_same_seed_makes_the_same_files() -> None:
    """Another seed makes others, and few are still the file they were made of."""
    originals = seeds(VIDEOS)
    made = list(mutants(originals, 60, seed=1))
    assert made == list(mutants(originals, 60, seed=1))
    assert made != list(mutants(originals, 60, seed=2))
    assert sum(one.content in originals.values() for one in made) < 6


LARGE = {
    "a Matroska header of 100,000 px": (craft.matroska(100_000, 100_000), "100000 x 100000 px"),
    "an AVI header of 100,000 px": (craft.avi(100_000, 100_000), "100000 x 100000 px"),
    "a GIF of 65,535 px": (craft.gif(65_535, 65_535), "65535 x 65535 px"),
    "ten hours": (craft.lasting(36_000), "36000 s long"),
    "two billion frames": (craft.with_frames(2**31 - 1), "2147483647 frames"),
}


@pytest.fixture(scope="module")
def stage():
    with Decode(DecodeConfig(), side_px=32) as stage:
        yield stage


@pytest.mark.parametrize("name", LARGE)
def test_what_its_header_calls_too_large_is_refused(name: str, stage: Decode, tmp_path: Path) -> None:
    """By a limit that is a flag, and the message says which; the child that read the header lives on."""
    content, said = LARGE[name]
    (tmp_path / "video.mp4").write_bytes(content)
    row, _ = one(stage, tmp_path / "video.mp4")
    assert row["error_class"] == "TOO_LARGE", row["error"]
    assert said in row["error"]
    assert stage.child.ended == {}


def test_the_same_files_within_the_limits_are_not_refused_for_their_size(stage: Decode, tmp_path: Path) -> None:
    """So it is the number in the header that was refused, not the file."""
    for name, content in (("mkv", craft.matroska(100, 100)), ("avi", craft.avi(100, 100)), ("gif", craft.gif(100, 100))):
        (tmp_path / name).write_bytes(content)
        assert one(stage, tmp_path / name)[0]["error_class"] in (None, "CORRUPT")
    (tmp_path / "second").write_bytes(craft.lasting(1))
    assert one(stage, tmp_path / "second")[0]["error_class"] is None


def test_archives_of_zeros_stay_packed(stage: Decode, tmp_path: Path) -> None:
    """They are no videos, whatever they are called, and nobody unpacks them."""
    with zipfile.ZipFile(tmp_path / "zip.mp4", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.mp4", "w") as inside:
        for _ in range(64):
            inside.write(bytes(1 << 20))
    (tmp_path / "gzip.mp4").write_bytes(b"\x1f\x8b\x08" + bytes(1000))
    rows = stage(corpus(tmp_path / "zip.mp4", tmp_path / "gzip.mp4")).to_pylist()
    assert [row["error_class"] for row in rows] == ["CORRUPT", "CORRUPT"]
    assert all("no known video container" in row["error"] for row in rows)


def test_a_file_that_keeps_its_decoder_busy_is_killed_and_slows_nobody(tmp_path: Path) -> None:
    """100,000 frames of 2048 x 2048 px in 8 MB: while one child decodes it, another serves good videos; its deadline ends it.

    The deadline is out of the way while they are served: how long that takes is up to the machine.
    """
    bomb = craft.slow(tmp_path / "slow.webm")
    with Decode(DecodeConfig(deadline_s=3600), side_px=32) as busy, Decode(DecodeConfig(), side_px=32) as other:
        for stage in (busy, other):
            assert one(stage, NEIGHBOUR)[0]["error_class"] is None
        killed: list[dict[str, object]] = []
        thread = threading.Thread(target=lambda: killed.append(one(busy, bomb)[0]))
        thread.start()
        while thread.is_alive() and busy.child.served < 2:
            thread.join(0.01)  # until the bomb is with the child
        served = [one(other, NEIGHBOUR)[0]["error_class"] for _ in range(30)]
        before_its_end = not killed
        assert busy.child.process is not None
        busy.child.config = DecodeConfig(deadline_s=2)
        busy.child.process.terminate()  # from outside, so it is tried again
        thread.join()
        assert served == [None] * 30
        assert before_its_end
        assert killed[0]["error_class"] == "TIMEOUT"
        assert busy.child.ended == {"KILLED": 1, "TIMEOUT": 1}
        assert other.child.ended == {}
        busy.child.config = DecodeConfig()
        assert one(busy, NEIGHBOUR)[0]["error_class"] is None


def test_a_file_that_takes_all_memory_is_refused_and_recorded(tmp_path: Path) -> None:
    """A clip of 100 MB where 48 MB are allowed: the child is replaced, the next video decodes."""
    bomb = craft.large(tmp_path / "large.webm", side_px=2048)
    with Decode(DecodeConfig(memory_mb=48), side_px=32) as stage:
        rows = stage(corpus(bomb, NEIGHBOUR)).to_pylist()
        assert rows[0]["error_class"] in ("OUT_OF_MEMORY", "CRASHED")
        assert rows[0]["source_sha256"]
        assert rows[1]["error_class"] is None
        assert rows[1]["frames"]
    with Decode(DecodeConfig(), side_px=32) as stage:
        assert stage(corpus(bomb))["error_class"].to_pylist() == [None]


def test_file_that_kills_decord_is_refused_by_a_limit_and_read_by_pyav_without_it(stage: Decode, tmp_path: Path) -> None:
    """A real one, 1.6 KB, found by fuzzing: its header declares three billion frames, and it holds four."""
    path = tmp_path / "crash.mov"
    path.write_bytes(craft.crashing())
    assert one(stage, path)[0]["error_class"] == "TOO_LARGE"
    with Decode(DecodeConfig(max_frames=0), side_px=32) as bold:
        rows = bold(corpus(NEIGHBOUR, path, NEIGHBOUR)).to_pylist()
        assert [row["error_class"] for row in rows] == [None, None, None]
        assert rows[0]["frames"] == rows[2]["frames"]
        assert bold.child.ended == {}


def test_resident_memory_is_measured_while_children_decode() -> None:
    """A few rows of what `python -m tests.poison.leaks` prints; both processes have memory, and every video decodes."""
    rows = list(measured(decodes=12, every=4, config=DecodeConfig(recycle=0)))
    assert [row.decodes for row in rows] == [0, 4, 8, 12]
    assert all(row.parent_mb > 10 for row in rows)
    assert all(row.child_mb > 10 for row in rows[1:])


def test_the_kernel_ends_a_busy_child_whose_parent_does_not(tmp_path: Path) -> None:
    """The parent is gone in spirit: it asks and never kills. No Python of the child has to run for its end."""
    bomb = craft.slow(tmp_path / "slow.webm")
    child = subprocess.Popen(
        [sys.executable, "-m", "pipeline.decode.worker"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdin is not None
    settings = {"config": asdict(DecodeConfig(deadline_s=1)), "side_px": 32}
    request = {"path": str(bomb), "demuxer": "matroska", "span": None, "measure": False, "inspect": None, "decoder": "pyav"}
    for message in (settings, request):
        child.stdin.write(json.dumps(message).encode() + b"\n")
        child.stdin.flush()
    assert child.wait() == -signal.SIGALRM
    child.stdin.close()


def test_the_long_version_prints_its_table() -> None:
    """With its exit code: what `make poison` runs."""
    command = [sys.executable, "-m", "tests.poison", "--files", "12", "--seed", "3"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for word in ("files", "longest", "untyped", "hung", "disturbed"):
        assert word in ran.stdout
