"""The command line as a user runs it: a process of its own, and the report on the last line of what it says."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.cli import main
from tests import forked

ROOT = Path(__file__).parents[1]


def environment(**more: str) -> dict[str, str]:
    """This process's variables, with our tree before any installed one and one thread for each library."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **more}


def framefold(*args: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process that has the libraries loaded."""
    return forked.run(main, args, cwd, environment(**env))


def afresh(*args: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a new interpreter."""
    command = [sys.executable, "-m", "jobs.cli", *args]
    return subprocess.run(command, cwd=cwd, env=environment(**env), capture_output=True, text=True, check=False)


@contextlib.contextmanager
def running(*args: str, cwd: Path = ROOT, **env: str) -> Iterator[subprocess.Popen[str]]:
    """The same while it runs; killed at the end of the block, if it has not ended before."""
    command, pipes = [sys.executable, "-m", "jobs.cli", *args], {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=cwd, env=environment(**env), text=True, **pipes) as job:
        try:
            yield job
        finally:
            job.kill()


def started_with(interrupt: signal.Handlers, *command: str) -> list[str]:
    """Return a command that starts with SIGINT ignored or at its default, whatever this process was started with.

    A shell script starts its background jobs with SIGINT ignored, and their children inherit that: those of a test suite too.
    """
    start = f"import os, signal, sys; signal.signal(signal.SIGINT, {int(interrupt)}); os.execv(sys.argv[1], sys.argv[1:])"
    return [sys.executable, "-c", start, *command]


def report(ran: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert ran.stdout, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found
