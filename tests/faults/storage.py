"""Faults of what a store stands on: S3 that falters or is gone, a full disk, little memory for objects."""

import contextlib
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec

from tests import s3
from tests.faults.check import check
from tests.faults.clips import Clips, make_clips
from tests.faults.faults import Outcome
from tests.faults.nodes import Nodes
from tests.faults.proxy import FAULTS, FaultProxy
from tests.faults.runs import Job, Place, again, ended, place

BUCKET = "faults"
HEAVY = ("--frames", "64", "--batch-clips", "16", "--videos-per-unit", "16")
"""Clips of 0.8 MB in blocks of 13 MB: a few fill a small object store."""


def options(port: int, attempts: int = 1) -> dict[str, Any]:
    """Return storage options; one attempt leaves all patience but s3fs's own to us."""
    found = s3.options(port)
    found["config_kwargs"] |= {"read_timeout": 2, "retries": {"mode": "standard", "total_max_attempts": attempts}}
    return found


def faltering(folder: Path, *, port: int, videos: int, shares: Mapping[str, float], seed: int = 0) -> Outcome:
    """Corpus and store on S3, where a share of all requests is spoiled. One run must do: nothing may be put down to a video."""
    clips = make_clips(folder / "clips", videos)
    prefix = _upload(port, clips)
    with FaultProxy(port, shares, seed=seed) as proxy:
        job = _job(prefix, proxy.port)
        first = again(job)
        disturbed = check(f"{prefix}/store", clips, options(port, 5))
        runs = [first, again(job)]
    found = check(f"{prefix}/store", clips, options(port, 5))
    assert first.code == 0, first.said[-2000:]
    assert disturbed.ok, disturbed
    return Outcome(fault=f"S3: {', '.join(shares)}", harm=proxy.spoiled, runs=runs, found=found)


def gone(folder: Path, *, port: int, videos: int, fault: str = "slow_down") -> Outcome:
    """S3 fails for good in the middle: the run ends with 4 and a sentence, and the same command later completes the store."""
    clips = make_clips(folder / "clips", videos)
    prefix = _upload(port, clips)
    with FaultProxy(port, {}) as proxy:
        job = _job(prefix, proxy.port)
        with place() as where:
            run = where.start(job)
            while proxy.counts["requests"] < 40 and run.poll() is None:
                time.sleep(0.02)
            proxy.shares = {fault: 1.0}
            broken = ended(run)
        proxy.heal()
        runs = [broken, again(job)]
    assert broken.code == 4, (broken.code, broken.said[-2000:])
    assert "framefold: " in broken.said.splitlines()[-1], broken.said[-2000:]
    found = check(f"{prefix}/store", clips, options(port, 5))
    return Outcome(fault="S3: gone for good", harm=proxy.spoiled, runs=runs, found=found)


def _job(prefix: str, port: int) -> Job:
    return Job(corpus=f"{prefix}/clips", store=f"{prefix}/store", options=options(port), words=("--decoders", "2"))


def _upload(port: int, clips: Clips) -> str:
    """Put the corpus on the server itself, past any proxy; returns its URL."""
    fs = fsspec.filesystem("s3", **options(port, 5))
    with contextlib.suppress(FileExistsError):
        fs.mkdir(BUCKET)
    prefix = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    files = sorted(clips.folder.iterdir())
    fs.pipe({f"{prefix}/clips/{path.name}": path.read_bytes() for path in files})
    return prefix


def disk_full(folder: Path, *, videos: int, size_kb: int) -> Outcome:
    """A file system too small for the store, then one that is large enough."""
    clips = make_clips(folder / "clips", videos)
    with small_disk(folder / "disk", size_kb) as disk:
        job = Job(corpus=str(clips.folder), store=str(disk / "store"))
        full = again(job)
        assert full.code == 4, (full.code, full.said[-2000:])
        assert "No space left on device" in full.said.splitlines()[-1], full.said[-2000:]
        left = [path for path in (disk / "store").rglob("*") if path.name.endswith(".tmp")]
        assert not left, f"a failed write left {left}"
        subprocess.run(["mount", "-o", f"remount,size={size_kb * 20}k", str(disk)], check=True)
        runs = [full, again(job)]
        found = check(job.store, clips)
    return Outcome(fault="disk full", harm=1, runs=runs, found=found)


@contextlib.contextmanager
def small_disk(folder: Path, size_kb: int) -> Iterator[Path]:
    """Mount a small file system in memory. Raises PermissionError where that is not allowed."""
    folder.mkdir(parents=True)
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        raise PermissionError("mounting needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def little_memory(folder: Path, *, videos: int, nodes: Nodes, where: Place) -> Outcome:
    """More decoded clips than Ray's object store holds: they wait or spill, none is lost."""
    clips = make_clips(folder / "clips", videos)
    words = ("--address", nodes.address, "--decoders", "2", *HEAVY)
    job = Job(corpus=str(clips.folder), store=str(folder / "store"), runner="ray", words=words)
    runs = [where.run(job), again(job)]
    bytes_decoded = videos * 64 * 64 * 64 * 3
    return Outcome(
        fault="object store nearly full", harm=bytes_decoded // nodes.store_bytes, runs=runs, found=check(job.store, clips)
    )


__all__ = ["FAULTS", "disk_full", "faltering", "gone", "little_memory", "options", "small_disk"]
