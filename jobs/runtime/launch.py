"""From a command line to an exit code: what every job has in common.

Exit codes: 0 done; 1 more videos failed than allowed; 2 a wrong setting, nothing written; 3 stopped by a signal, run again to
go on; 4 storage that cannot be trusted or a fault of infrastructure. The report is the last line of stdout, as
JSON; on a terminal it is a table.
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
from pathlib import Path
from typing import Any, TypeVar

import tyro

from jobs.runtime.logs import configure, log_format, say, with_flag
from jobs.runtime.report import FLAG, write_report
from jobs.runtime.report import Report as Report  # what `run` of every command returns
from pipeline.errors import ConfigError, PipelineError
from pipeline.extras import missing_extra
from pipeline.names import one_line
from pipeline.redaction import redact, redact_all, secrets_of

DONE, FAILED, WRONG_SETTING, STOPPED, FAULT = range(5)
FRAME = re.compile(r"^\s*[╭╰│|+]+|[╮╯│|+]+\s*$|\x1b\[[0-9;]*m")
FLAGS = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagConversionOff)
RULE = re.compile(r"[-─━\s]*|(For|Argument) (full )?helptext.*")

J = TypeVar("J")


def launch(job: type[J], run: Callable[[J], Report], prog: str, args: Sequence[str] | None = None) -> int:
    """Parse the flags of a job, run it, print its report. Returns the exit code."""
    given = with_values(args, FLAG)
    secrets = _secrets(given)
    _write_whatever_the_encoding()
    code = DONE
    try:
        configure(secrets, log_format(given))
        settings = parse(job, prog, given)
        report = run(settings)
        code = int(report.get("exit_code", DONE))
        if not report.get("silent"):
            write_report(redact_all(report, secrets), as_json=_wants_json(settings))
    except KeyboardInterrupt:
        return _say("stopped; run the same command again to go on", STOPPED)
    except BrokenPipeError:  # the reader of our output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        return _failed(error, secrets)
    return code


def _wants_json(settings: object) -> bool:
    """Tell whether `--json` was given; a command may have this flag among its own."""
    return bool(getattr(getattr(settings, "report", settings), "json", False))


def _write_whatever_the_encoding() -> None:
    """Let stdout show a character that its encoding lacks as an escape: a name must not end a listing.

    A process may be started without a stdout; what it would print goes nowhere then.
    """
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  # open as long as the process lives
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def exit_code(*, stopped: bool, failed: bool, damaged: bool = False) -> int:
    """Return how a job ended that did all it could: stopped by a signal, over damaged entries, over too many failures, done."""
    return STOPPED if stopped else FAULT if damaged else FAILED if failed else DONE


def _secrets(args: Sequence[str]) -> frozenset[str]:
    """Return the secrets in the JSON objects of a command line: storage options, parsed or not."""
    found: set[str] = set()
    for text in args:
        with contextlib.suppress(ValueError):
            options = json.loads(text[text.find("{") :])
            found |= secrets_of(options) if isinstance(options, dict) else set()
    return frozenset(found)


def parse(job: type[J], prog: str, args: Sequence[str]) -> J:
    """Return the job of a command line. Raises ConfigError, in one line, where tyro would draw a box."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(with_flag(job), prog=prog, args=args, config=FLAGS)
    except SystemExit as error:
        if error.code in (0, None):
            raise
        raise ConfigError(_unframed(said.getvalue()) or f"wrong arguments, see {prog} --help") from error


def with_values(args: Sequence[str] | None, *flags: str) -> list[str]:
    """Return the arguments of a command line with the value True behind flags without one: a positional is none."""
    given = list(sys.argv[1:] if args is None else args)
    return [
        f"{word}=True" if word in flags and after not in ("True", "False") else word
        for word, after in zip(given, [*given[1:], ""], strict=False)
    ]


def _unframed(box: str) -> str:
    """Return what stands in a box of tyro's, on one line, without its title, its frame and where to look for help."""
    lines = [FRAME.sub("", line).strip() for line in box.splitlines()]
    titled = box.lstrip().startswith(("╭", "+", "\x1b"))
    return " ".join(" ".join(line for line in lines[titled:] if not RULE.fullmatch(line)).split())


def _failed(error: Exception, secrets: frozenset[str]) -> int:
    """Print one line for an error of ours, however deep Ray has wrapped it; anything else is a defect and is shown whole."""
    ours = _ours(error)
    if ours is None:
        logging.getLogger(__name__).exception("the job failed")
    text = f"{type(error).__name__}: {error}" if ours is None else ours.said
    return _say(redact(text, secrets), code_of(error))


def code_of(error: BaseException) -> int:
    """Return the exit code of a job that an error ends."""
    if isinstance(error, KeyboardInterrupt):
        return STOPPED
    return WRONG_SETTING if isinstance(_ours(error), ConfigError) else FAULT


def _ours(error: BaseException) -> PipelineError | None:
    """Return the error of ours that another wraps, or is; a missing package is an error of the installation."""
    return next((cause for cause in _causes(error) if isinstance(cause, PipelineError)), None) or missing_extra(error)


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
    lines = filter(None, map(str.strip, text.splitlines()))  # spaces within a line may be part of a name
    say(one_line(" ".join(lines)), logging.WARNING if code == STOPPED else logging.ERROR, exit_code=code)
    return code


@contextlib.contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM and SIGINT set; a second one ends the process at once.

    Python delivers signals to the main thread: in another one, where a program calls the library, no signal sets the event.

    A signal that was ignored when the process started stays ignored, as is the custom: a shell script starts what it puts in
    the background with SIGINT ignored, so that Ctrl-C ends the script and not `nohup framefold encode &`. SIGTERM stops that.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, _frame: object) -> None:
        if stop.is_set():
            os._exit(STOPPED)
        stop.set()
        say(f"{signal.Signals(number).name}: finishing the unit at hand", logging.WARNING)

    heard = [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, ask) for number in heard}
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
