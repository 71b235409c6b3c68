"""Start the real command in a process of its own, marked so that its descendants can be found, and wait for its report."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.killing import MARK, STAGES, end_all, processes

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "pipeline" / "synthetic" / "checkpoint"
WAIT_S = 1000.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """One encode command: the same words each time it is run."""

    corpus: str
    store: str
    runner: str = "local"
    words: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    unit: int = 4

    @property
    def arguments(self) -> list[str]:
        """Return the command line after `framefold`."""
        fixed = ["encode", self.corpus, "--store", self.store, "--model", str(MODEL), "--reducer", "spatial(k=4)"]
        fixed += ["--runner", self.runner, "--videos-per-unit", str(self.unit), "--batch-clips", "2", "--max-failed", "1000"]
        return [*fixed, *self.words, *(["--storage-options", json.dumps(dict(self.options))] if self.options else [])]


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    code: int
    report: dict[str, Any]
    """Empty if the run was killed or told a fault."""
    said: str


class Place:
    """Where marked processes run: one mark for all of them, and a short folder for Ray's sockets."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        self.folder = Path("/tmp") / f"fff{self.mark[:6]}"  # socket names below it are limited to 107 bytes

    def environment(self) -> dict[str, str]:
        """Return the environment of a run: ours, without what would lead to another Ray."""
        found = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        ray = {"RAY_TMPDIR": str(self.folder), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
        return {**found, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", MARK: self.mark, **ray}

    def start(self, job: Job) -> subprocess.Popen[str]:
        """Start the command."""
        return subprocess.Popen(
            [sys.executable, "-m", "jobs.cli", *job.arguments], cwd=ROOT, env=self.environment(), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def run(self, job: Job) -> Ended:
        """Run the command to its end."""
        return ended(self.start(job))

    def idle(self, timeout_s: float = 300.0) -> int:
        """Wait for the stages of a killed driver to end by themselves; returns how many have not.

        Ray's own agents are not counted: killed at a bad moment, a private cluster may leave two of them behind.
        """
        end = time.monotonic() + timeout_s
        while (left := processes(self.mark, STAGES)) and time.monotonic() < end:
            time.sleep(0.1)
        return len(left)


@contextlib.contextmanager
def place() -> Iterator[Place]:
    """Yield a place; whatever still runs there is killed in the end."""
    found = Place()
    found.folder.mkdir()
    try:
        yield found
    finally:
        end_all(found.mark)
        shutil.rmtree(found.folder, ignore_errors=True)


def ended(process: subprocess.Popen[str]) -> Ended:
    """Wait for a run."""
    out, err = process.communicate(timeout=WAIT_S)
    lines = out.splitlines()
    report = next((json.loads(line) for line in reversed(lines) if line.startswith('{"job"')), {})
    return Ended(process.returncode, report, err if report else err + out)


def again(job: Job) -> Ended:
    """Run the same command in this process, which has loaded the libraries."""
    from jobs.commands.encode import main

    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(job.arguments[1:])
    lines = out.getvalue().splitlines()
    return Ended(code, json.loads(lines[-1]) if lines else {}, err.getvalue())


def fragments(store: str) -> int:
    """Return how many units are committed to a store on local disk."""
    return sum(1 for _ in Path(store).glob("index/*/*.parquet"))


def wait_until(true: Callable[[], bool], process: subprocess.Popen[str]) -> bool:
    """Wait for a condition while a run lives; returns whether it came true."""
    end = time.monotonic() + WAIT_S
    while process.poll() is None and time.monotonic() < end:
        if true():
            return True
        time.sleep(0.02)
    return False
