"""Ctrl-C at any moment is one sentence and exit 3: before a job has begun, and after it has said its last word."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.command import ROOT, environment, started_with

EARLY = """
import importlib, os, signal, sys
from jobs import cli

def interrupted(name):
    os.kill(os.getpid(), signal.SIGINT)  # while the libraries of a job load
    raise AssertionError("not interrupted")

cli.importlib.import_module = interrupted
sys.exit(cli.main(["encode", "x"]))
"""


def early(interrupt: signal.Handlers) -> subprocess.CompletedProcess[str]:
    command = started_with(interrupt, sys.executable, "-c", EARLY)
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)


def test_an_interrupt_while_libraries_load_is_one_sentence() -> None:
    ran = early(signal.SIG_DFL)
    assert (ran.returncode, ran.stderr) == (3, "framefold: stopped; run the same command again to go on\n")


def test_an_interrupt_while_libraries_load_is_ignored_in_the_background() -> None:
    """Where a shell script started the command with `&`, Ctrl-C is for the script."""
    ran = early(signal.SIG_IGN)
    assert (ran.returncode, ran.stderr.splitlines()[-1]) == (1, "AssertionError: not interrupted")


RUNNING = """
import os, signal, sys
from jobs.runtime.launch import stop_on_signal

with stop_on_signal() as stop:
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    stop.wait(0)
    sys.exit(3 if stop.is_set() else 0)
"""


@pytest.mark.parametrize(
    ("interrupt", "sent", "code"),
    [(signal.SIG_DFL, "SIGINT", 3), (signal.SIG_IGN, "SIGINT", 0), (signal.SIG_IGN, "SIGTERM", 3)],
)
def test_a_running_job_stops_unless_it_was_started_to_ignore_the_signal(
    interrupt: signal.Handlers, sent: str, code: int
) -> None:
    """A job in the background of a script goes on at Ctrl-C and stops at SIGTERM."""
    command = started_with(interrupt, sys.executable, "-c", RUNNING, sent)
    ran = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert ran.returncode == code, ran.stderr
    assert (f"{sent}: finishing the unit at hand" in ran.stderr) == (code == 3)


LATE = """
import atexit, sys, time
from jobs import cli

atexit.register(time.sleep, 3)  # as long as large libraries take to go
sys.argv = ["framefold", "reducers"]
code = cli.main()
sys.stderr.write("done\\n")
sys.exit(code)
"""


def test_an_interrupt_after_the_report_changes_no_exit_code(tmp_path: Path) -> None:
    """Impatience while the interpreter ends: what is done is done."""
    with (tmp_path / "err").open("w") as err:
        command = started_with(signal.SIG_DFL, sys.executable, "-c", LATE)
        job = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=err, text=True)
        while "done" not in (tmp_path / "err").read_text() and job.poll() is None:
            time.sleep(0.02)
        job.send_signal(signal.SIGINT)
        assert job.wait() == 0
    assert (tmp_path / "err").read_text() == "done\n"
