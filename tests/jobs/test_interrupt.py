"""Ctrl-C at any moment is one sentence and exit 3: before a job has begun, and after it has said its last word."""

import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.command import ROOT, environment

EARLY = """
import importlib, os, signal, sys
from jobs import cli

def interrupted(name):
    os.kill(os.getpid(), signal.SIGINT)  # while the libraries of a job load
    raise AssertionError("not interrupted")

cli.importlib.import_module = interrupted
sys.exit(cli.main(["encode", "x"]))
"""


def test_an_interrupt_while_libraries_load_is_one_sentence() -> None:
    command = [sys.executable, "-c", EARLY]
    ran = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (3, "framefold: stopped; run the same command again to go on\n")


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
        job = subprocess.Popen(
            [sys.executable, "-c", LATE], cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=err, text=True
        )
        while "done" not in (tmp_path / "err").read_text() and job.poll() is None:
            time.sleep(0.02)
        job.send_signal(signal.SIGINT)
        assert job.wait() == 0
    assert (tmp_path / "err").read_text() == "done\n"
