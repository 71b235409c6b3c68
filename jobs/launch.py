"""From a command line to an exit code: what every job has in common.

Exit codes: 0 done; 1 more videos failed than allowed; 2 a wrong setting, nothing written; 3 stopped by a signal, run again to
go on; 4 storage that cannot be trusted or a fault of infrastructure. The report is JSON, the last line of stdout.
"""

import contextlib
import io
import json
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import tyro

from pipeline.errors import ConfigError, PipelineError
from pipeline.redaction import redact, redact_all, secrets_of

DONE, FAILED, WRONG_SETTING, STOPPED, FAULT = range(5)
FRAME = re.compile(r"^\s*[╭╰│|+]+|[╮╯│|+]+\s*$|\x1b\[[0-9;]*m")
RULE = re.compile(r"[-─━\s]*|(For|Argument) (full )?helptext.*")

J = TypeVar("J")
Report = dict[str, Any]


def launch(job: type[J], run: Callable[[J], Report], prog: str, args: Sequence[str] | None = None) -> int:
    """Parse the flags of a job, run it, print its report. Returns the exit code."""
    secrets = _secrets(sys.argv[1:] if args is None else args)
    _configure_logs(secrets)
    try:
        report = run(_parse(job, prog, args))
    except KeyboardInterrupt:
        return _say("stopped; run the same command again to go on", STOPPED)
    except BrokenPipeError:  # the reader of our output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except Exception as error:
        return _failed(error, secrets)
    code = int(report.get("exit_code", DONE))
    if report.get("silent"):
        return code
    sys.stdout.write(json.dumps(redact_all(report, secrets), ensure_ascii=False) + "\n")
    sys.stdout.flush()
    return code


def exit_code(*, stopped: bool, failed: bool, damaged: bool = False) -> int:
    """Return how a job ended that did all it could: stopped by a signal, over damaged entries, over too many failures, done."""
    return STOPPED if stopped else FAULT if damaged else FAILED if failed else DONE


class _Redacted(logging.Formatter):
    """Lines without secrets, tracebacks included."""

    def __init__(self, secrets: frozenset[str]) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")
        self.secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record), self.secrets)


def _configure_logs(secrets: frozenset[str]) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Redacted(secrets))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for noisy in ("httpx", "botocore", "aiobotocore", "s3fs", "fsspec", "ray"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _secrets(args: Sequence[str]) -> frozenset[str]:
    """Return the secrets in the JSON objects of a command line: storage options, parsed or not."""
    found: set[str] = set()
    for text in args:
        with contextlib.suppress(ValueError):
            options = json.loads(text[text.find("{") :])
            found |= secrets_of(options) if isinstance(options, dict) else set()
    return frozenset(found)


def _parse(job: type[J], prog: str, args: Sequence[str] | None) -> J:
    """Return the job of a command line. Raises ConfigError, in one line, where tyro would draw a box."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(job, prog=prog, args=args, config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff))
    except SystemExit as error:
        if error.code in (0, None):
            raise
        raise ConfigError(_unframed(said.getvalue()) or f"wrong arguments, see {prog} --help") from error


def _unframed(box: str) -> str:
    """Return what stands in a box of tyro's, on one line, without its title, its frame and where to look for help."""
    lines = [FRAME.sub("", line).strip() for line in box.splitlines()]
    titled = box.lstrip().startswith(("╭", "+", "\x1b"))
    return " ".join(" ".join(line for line in lines[titled:] if not RULE.fullmatch(line)).split())


def _failed(error: Exception, secrets: frozenset[str]) -> int:
    """Print one line for an error of ours, however deep Ray has wrapped it; anything else is a defect and is shown whole."""
    for cause in _causes(error):
        if isinstance(cause, ConfigError):
            return _say(redact(cause.said, secrets), WRONG_SETTING)
        if isinstance(cause, PipelineError):
            return _say(redact(cause.said, secrets), FAULT)
    logging.getLogger(__name__).exception("the job failed")
    return _say(redact(f"{type(error).__name__}: {error}", secrets), FAULT)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop(0)
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            inner = getattr(one, "cause", None)
            if isinstance(inner, BaseException):  # Ray's wrapping is of the same type, and its text a whole traceback
                waiting.insert(0, inner)
            else:
                yield one
            waiting += [one.__cause__, one.__context__]


def _say(text: str, code: int) -> int:
    line = " ".join(text.split())
    sys.stderr.write(f"framefold: {line}\n")
    return code


@contextlib.contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM and SIGINT set; a second one ends the process at once."""
    stop = threading.Event()

    def ask(number: int, _frame: object) -> None:
        if stop.is_set():
            os._exit(STOPPED)
        stop.set()
        _say(f"{signal.Signals(number).name}: finishing the unit at hand", STOPPED)

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def storage_options(text: str) -> dict[str, Any]:
    """Return the fsspec options of a JSON object. Raises ConfigError, without repeating what may be a secret."""
    return json_object(text, "--storage-options")


def json_object(text: str, flag: str) -> dict[str, Any]:
    """Return the JSON object that a flag holds. Raises ConfigError, without repeating what may be a secret."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{flag} must be a JSON object: {error}") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{flag} must be a JSON object, got a {type(found).__name__}")
    return found
