"""The report: a table on a terminal, one line of JSON elsewhere and with --json."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.runtime.report import table
from pipeline.store.token_store import TokenStore
from tests.tables import SPEC, encoded, failed

ROOT = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path: Path) -> str:
    TokenStore.create(str(tmp_path), SPEC).commit(encoded([failed("a", "CORRUPT"), failed("b", "TIMEOUT")]))
    return str(tmp_path)


def on_terminal(*args: str) -> str:
    """Return what a command writes to stdout where that is a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-m", "jobs.cli", *args], cwd=ROOT, stdout=theirs, stderr=subprocess.DEVNULL)
    os.close(theirs)
    read = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the terminal is closed
            part = b""
        if not part:
            break
        read += part
    os.close(ours)
    assert process.wait() == 0
    return read.decode()


def test_report_on_a_terminal_is_a_table_and_json_on_request(store: str) -> None:
    lines = on_terminal("store", "verify", store).splitlines()
    assert ["ok", "yes"] in [line.split() for line in lines]
    with pytest.raises(json.JSONDecodeError):
        json.loads(lines[-1])
    assert json.loads(on_terminal("store", "verify", store, "--json").splitlines()[-1])["ok"] is True


def test_report_elsewhere_is_one_line_of_json(store: str) -> None:
    for flags in ((), ("--json",), ("--json", "True")):
        ran = subprocess.run(
            [sys.executable, "-m", "jobs.cli", "store", "verify", store, *flags], cwd=ROOT, capture_output=True, check=True
        )
        assert json.loads(ran.stdout.splitlines()[-1])["ok"] is True


@pytest.mark.parametrize(
    ("stdout", "code", "said"),
    [("| true", 0, ""), (">/dev/full", 4, "the report cannot be written to stdout: No space left on device"), (">&-", 0, "")],
)
def test_stdout_that_takes_nothing_changes_no_result(stdout: str, code: int, said: str, store: str) -> None:
    """A reader that has gone is no fault; a full disk is one, in a sentence."""
    command = f"set -o pipefail; {sys.executable} -m jobs.cli store verify {store} {stdout}"
    ran = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == code, ran.stderr
    assert said in ran.stderr
    assert "Traceback" not in ran.stderr


def test_table_shows_pairs_lists_and_rows_of_a_report() -> None:
    report = {"job": "encode", "by_class": {"TIMEOUT": 2}, "first": [{"id": "a", "why": None}], "ids": ["a\nb"], "none": {}}
    assert list(table(report)) == [
        "job       encode",
        "by_class  TIMEOUT 2",
        "first     1",
        "          id a, why none",
        "ids       a%0Ab",
        "none      none",
    ]


def test_list_of_reducers_is_a_table_and_json_on_request() -> None:
    def said(*flags: str) -> list[str]:
        command = [sys.executable, "-m", "jobs.cli", "reducers", *flags]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()

    assert said()[0].split() == ["reducer", "runs", "what", "it", "does"]
    (line,) = said("--json")
    assert "prumerge+" in json.loads(line)["reducers"]
