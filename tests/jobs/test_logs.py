"""What a job says on stderr as JSON, in a real process: an object on every line, numbers as numbers, and no secret in it."""

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from jobs.commands.encode import EncodeJob
from jobs.runtime.launch import parse
from jobs.runtime.logs import log_format, run_id
from pipeline.errors import ConfigError
from tests.command import ROOT, environment, framefold
from tests.jobs.test_launch import JOB, SECRET
from tests.models import tiny_checkpoint

AWKWARD = 'hun"ter\\2\u00e9'
"""A secret that JSON writes in another way than it is."""
MORE = """
def also(job):
    if job.what == "signal":
        import os, signal
        from jobs.runtime.launch import stop_on_signal
        with stop_on_signal():
            os.kill(os.getpid(), signal.SIGTERM)
    if job.what == "warning":
        import warnings
        warnings.warn("a library warns")
    if job.what == "native":
        import os
        from jobs.runtime.logs import native_lines_logged
        with native_lines_logged():
            os.write(2, b"of a library\\nin C\\n")
            logging.getLogger("x").info("meanwhile")
            os.write(2, b"and a secret " + storage_options(job.storage_options)["client_kwargs"]["secret"].encode())
        logging.getLogger("x").info("after")
    if job.what == "fields":
        kept = storage_options(job.storage_options)["client_kwargs"]["secret"]
        fields = {"at": [1.5, {"key": kept}], "error": ValueError(kept), "message": "not this"}
        logging.getLogger("x").info("told", extra={"fields": fields})
    return run(job)

sys.exit(launch(Job, also, "framefold try"))
"""


def launched(what: str, *options: str, secret: str = SECRET, **env: str) -> subprocess.CompletedProcess[str]:
    code = JOB.replace('sys.exit(launch(Job, run, "framefold try"))', MORE)
    stored = json.dumps({"client_kwargs": {"secret": secret}})
    command = [sys.executable, "-c", code, "--what", what, "--storage-options", stored, *options]
    return subprocess.run(command, cwd=ROOT, env=environment(**env), capture_output=True, text=True, check=False)


def lines(ran: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """Every line of stderr, each of which is an object."""
    return [json.loads(line) for line in ran.stderr.splitlines()]


@pytest.mark.parametrize("options", [("--log-format", "json"), ("--log-format=json",), ("--log_format", "json"), ()])
def test_a_line_is_an_object_with_time_level_logger_and_message(options: tuple[str, ...]) -> None:
    """By flag however it is written, or by the environment."""
    ran = launched("log", *options, **({} if options else {"FRAMEFOLD_LOG_FORMAT": "json"}))
    assert (ran.returncode, ran.stdout) == (0, "{}\n")
    (line,) = lines(ran)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {"level": "WARNING", "logger": "x", "message": "the driver said *** here"}


@pytest.mark.parametrize(
    ("args", "told"), [((), "text"), (("x",), "text"), (("--log-format",), "text"), (("--log-format", "json"), "json")]
)
def test_the_format_is_read_from_any_command_line(args: tuple[str, ...], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty one, and one that breaks off."""
    monkeypatch.delenv("FRAMEFOLD_LOG_FORMAT", raising=False)
    assert log_format(args) == told


def test_a_flag_wins_over_the_environment_and_a_wrong_format_is_refused() -> None:
    """Exit 2 in the words of the house, by flag and by variable."""
    ran = launched("log", "--log-format", "text", FRAMEFOLD_LOG_FORMAT="json")
    assert ran.stderr.endswith("WARNING the driver said *** here\n")
    for ran in (launched("log", "--log-format", "xml"), launched("log", FRAMEFOLD_LOG_FORMAT="xml")):
        assert (ran.returncode, ran.stdout) == (2, "")
        assert ran.stderr.startswith("framefold: ")
        assert "xml" in ran.stderr


@pytest.mark.parametrize("what", ["log", "traceback", "config", "store", "defect", "wrapped", "carried", "fields"])
def test_no_secret_is_in_any_object_however_json_would_write_it(what: str) -> None:
    """Message, traceback, field, and the sentence at the end; a secret with quotes is looked for before it is escaped."""
    for secret in (SECRET, AWKWARD):
        ran = launched(what, "--log-format", "json", secret=secret)
        assert lines(ran)
        assert secret not in ran.stderr
        assert json.dumps(secret)[1:-1] not in ran.stderr
        assert "***" in ran.stderr


def test_a_traceback_is_a_field_and_an_error_the_last_object() -> None:
    """A defect is shown whole on one line; the exit code is a number."""
    ran = launched("defect", "--log-format", "json")
    log, end = lines(ran)
    assert log["exception"].startswith("Traceback")
    assert log["exception"].endswith("RuntimeError: the driver said *** here")
    assert (log["level"], log["message"]) == ("ERROR", "the job failed")
    assert (end["level"], end["logger"], end["exit_code"]) == ("ERROR", "framefold", 4)
    assert end["message"] == "RuntimeError: the driver said *** here"


def test_signals_warnings_and_wrong_flags_are_objects_too() -> None:
    """Nothing on stderr is left for a parser to stumble over."""
    assert lines(launched("signal", "--log-format", "json"))[0]["message"].startswith("SIGTERM")
    assert "a library warns" in lines(launched("warning", "--log-format", "json"))[0]["message"]
    (wrong,) = lines(launched("log", "--log-format", "json", "--nosuch", "1"))
    assert (wrong["exit_code"], "nosuch" in wrong["message"]) == (2, True)


def test_lines_of_native_code_are_objects_while_ray_starts_and_plain_in_plain_logs() -> None:
    """Ray's core says at which level it logs, whatever that level is."""
    told = [line["message"] for line in lines(launched("native", "--log-format", "json"))]
    assert told == ["of a library", "in C", "meanwhile", "and a secret ***", "after"]
    assert launched("native").stderr.startswith("of a library\nin C\n")


def test_fields_are_numbers_and_do_not_displace_what_every_line_has() -> None:
    """They come beside, redacted at any depth."""
    (line,) = lines(launched("fields", "--log-format", "json"))
    assert (line["message"], line["at"], line["error"]) == ("told", [1.5, {"key": "***"}], "***")


def test_a_terminal_that_knows_ascii_alone_gets_objects_all_the_same() -> None:
    """Python would write what it does not know as `\\xe9`, which is no JSON."""
    env = {"PYTHONIOENCODING": "ascii:backslashreplace", "FRAMEFOLD_RUN_ID": "\u00e9"}
    ran = launched("log", "--log-format", "json", **env)
    assert lines(ran)[0]["run"] == "\u00e9"


def test_each_line_names_the_run_where_it_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the operator says, or the submission id that Ray tells a submitted job."""
    assert lines(launched("log", "--log-format", "json", FRAMEFOLD_RUN_ID="nightly-7"))[0]["run"] == "nightly-7"
    submitted = '{"metadata": {"job_submission_id": "corpus-1"}}'
    for told, name in ((submitted, "corpus-1"), ("{}", None), ("[]", None), ("x", None)):
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", told)
        assert run_id() == name


def test_a_parsed_job_is_the_job_with_one_flag_more() -> None:
    """Who takes the job's class takes what the launcher parses."""
    job = parse(EncodeJob, "framefold encode", ["/videos", "--store", "s", "--model", "m", "--log-format", "json"])
    assert isinstance(job, EncodeJob)
    assert (job.corpus, job.encode.model) == ("/videos", "m")
    with pytest.raises(ConfigError, match="max_failed"):
        parse(EncodeJob, "framefold encode", ["/videos", "--store", "s", "--model", "m", "--max-failed", "-1"])


def test_an_encode_tells_its_progress_as_numbers_and_its_report_as_before(tmp_path: Any) -> None:
    """Every line of a real run parses; the last progress line has all that was done."""
    model = tiny_checkpoint(tmp_path / "tiny")
    videos = [str(ROOT / "tests" / "videos" / "unordered.mov"), "--store", str(tmp_path / "store")]
    flags = ["--model", model, "--reducer", "spatial(k=4)", "--runner", "local", "--log-format", "json"]
    ran = framefold("encode", *videos, *flags)
    told = [line for line in lines(ran) if line["logger"] == "jobs.runtime.progress"][-1]
    wanted = {"what": "encode", "done": 1, "total": 1, "failed": 0, "counts": {"committed": 1}, "eta_s": 0.0}
    assert {name: told[name] for name in wanted} == wanted
    assert told["per_s"] > 0
    assert json.loads(ran.stdout)["committed"] == 1
