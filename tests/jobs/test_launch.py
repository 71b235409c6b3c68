"""From a command line to an exit code, in a real process: what is said, on which stream, and that no secret is in it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.runtime.launch import json_object
from pipeline.errors import ConfigError

ROOT = Path(__file__).parents[2]
SECRET = "hunter2hunter2"
OPTIONS = json.dumps({"client_kwargs": {"secret": SECRET}})
JOB = """
import logging, sys
from dataclasses import dataclass
from jobs.runtime.launch import launch, storage_options
from pipeline.errors import ConfigError, StoreError, VideoError

@dataclass(frozen=True, kw_only=True)
class Job:
    what: str
    storage_options: str = "{}"

def run(job):
    kept = storage_options(job.storage_options)["client_kwargs"]["secret"]
    said = f"the driver said {kept} here"
    match job.what:
        case "report": return {"a": [{"b": said}], "exit_code": 1}
        case "lines": return {"a": "ls\u2028nel\u0085é\u202f" + chr(0xDCE9)}
        case "name": raise ConfigError("a  b\u202fc\u3000d\\n  e\tf" + chr(0xDCE9))
        case "silent": return {"silent": True, "exit_code": 1, "said": said}
        case "log": logging.getLogger("x").warning("%s", said)
        case "chatter": logging.getLogger("botocore.hooks").info("chatter"); logging.getLogger("x").info("our own")
        case "traceback":
            try: raise ValueError(said)
            except ValueError: logging.getLogger("x").exception("look")
        case "config": raise ConfigError(said)
        case "store": raise StoreError(f"the driver said\\n  {kept}\\n here")
        case "defect": raise RuntimeError(said)
        case "wrapped":
            error = RuntimeError("of an actor")
            error.__cause__ = ConfigError(said)
            raise RuntimeError("of Ray") from error
        case "while handling":
            try: raise ConfigError(said)
            except ConfigError: raise RuntimeError("of Ray")
        case "carried":
            error = RuntimeError("of Ray")
            error.cause = StoreError(said)
            raise error
        case "interrupt": raise KeyboardInterrupt
    return {}

sys.exit(launch(Job, run, "framefold try"))
"""


def launched(what: str, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", JOB, "--what", what, *(options or ("--storage-options", OPTIONS))]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def ours(ran: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines that speak to a person."""
    return [line.removeprefix("framefold: ") for line in ran.stderr.splitlines() if line.startswith("framefold: ")]


def test_a_report_and_its_exit_code_come_back_without_the_secret() -> None:
    """One line of JSON, however deep the text lies."""
    ran = launched("report")
    assert (ran.returncode, json.loads(ran.stdout)) == (1, {"a": [{"b": "the driver said *** here"}], "exit_code": 1})


def test_a_silent_report_is_an_exit_code_alone() -> None:
    """Commands that print for people print no JSON behind it."""
    ran = launched("silent")
    assert (ran.returncode, ran.stdout) == (1, "")


@pytest.mark.parametrize("what", ["log", "traceback"])
def test_a_line_of_the_log_has_no_secret(what: str) -> None:
    """Neither in its message nor in the traceback behind it."""
    ran = launched(what)
    assert ran.returncode == 0
    assert "the driver said *** here" in ran.stderr
    assert SECRET not in ran.stderr


def test_libraries_say_only_what_is_wrong() -> None:
    """Their chatter would hide our progress, and repeat headers."""
    ran = launched("chatter")
    assert "our own" in ran.stderr
    assert "chatter" not in ran.stderr


@pytest.mark.parametrize(("what", "code"), [("config", 2), ("store", 4), ("wrapped", 2), ("while handling", 2), ("carried", 4)])
def test_an_error_of_ours_is_one_line_without_the_secret(what: str, code: int) -> None:
    """However deep somebody has wrapped it, however many lines it had: the code tells who can mend it."""
    ran = launched(what)
    assert (ran.returncode, ran.stdout, ran.stderr) == (code, "", "framefold: the driver said *** here\n")


def test_an_error_about_a_name_shows_it_as_it_is() -> None:
    """Spaces of every kind can be copied from it; what would break the line is escaped."""
    ran = launched("name")
    assert (ran.returncode, ran.stderr) == (2, "framefold: a  b\u202fc\u3000d e%09f%E9\n")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_a_report_is_one_line_of_json_in_any_encoding(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    ran = launched("lines")
    assert ran.returncode == 0
    assert len(ran.stdout.splitlines()) == 1
    assert json.loads(ran.stdout) == {"a": "ls\u2028nel\u0085é\u202f\udce9"}


def test_a_defect_is_shown_whole_but_for_the_secret() -> None:
    """A traceback for who mends the code, and one line at the end."""
    ran = launched("defect")
    assert (ran.returncode, ran.stdout, ours(ran)) == (4, "", ["RuntimeError: the driver said *** here"])
    assert "Traceback" in ran.stderr
    assert SECRET not in ran.stderr


def test_an_interrupt_says_how_to_go_on() -> None:
    """Exit 3, as after a signal."""
    ran = launched("interrupt")
    assert (ran.returncode, ran.stdout, ours(ran)) == (3, "", ["stopped; run the same command again to go on"])


def test_a_flag_and_its_value_in_one_word_hide_the_secret_too() -> None:
    """`--storage-options={...}` is the same as two words."""
    ran = launched("config", f"--storage-options={OPTIONS}")
    assert (ran.returncode, ran.stderr) == (2, "framefold: the driver said *** here\n")


@pytest.mark.parametrize("broken", [f'{{"secret": "{SECRET}"', f'["{SECRET}"]', f'"{SECRET}"'])
def test_options_that_are_no_object_are_not_repeated(broken: str) -> None:
    """They may hold the secret that nobody could find in them."""
    ran = launched("config", "--storage-options", broken)
    assert (ran.returncode, len(ours(ran))) == (2, 1)
    assert "--storage-options must be a JSON object" in ours(ran)[0]
    assert SECRET not in ran.stderr
    with pytest.raises(ConfigError) as caught:
        json_object(broken, "--judge-request")
    assert str(caught.value).startswith("--judge-request must be a JSON object")
    assert caught.value.__cause__ is None
