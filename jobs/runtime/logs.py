"""What a job says on stderr: lines for a person, or one JSON object per line for a collector. No secret is in either.

A line as JSON has time (UTC), level, logger, message; run where the run has a name; exception where there is one; and the
numbers that the message tells, given as `extra={"fields": {...}}`.
"""

import contextlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Literal, TypeVar, get_args

from jobs.runtime.report import ReportConfig
from pipeline.errors import ConfigError
from pipeline.names import one_line
from pipeline.redaction import redact, redact_all

logger = logging.getLogger(__name__)
LogFormat = Literal["text", "json"]
FORMATS = get_args(LogFormat)
FLAG, VARIABLE = "--log-format", "FRAMEFOLD_LOG_FORMAT"
RUN_ID = "FRAMEFOLD_RUN_ID"
NAME = "framefold"
SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""What Ray tells the entry point of a submitted job about itself, as JSON."""
NOISY = ("httpx", "botocore", "aiobotocore", "s3fs", "fsspec", "ray")

J = TypeVar("J")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Format of the log on stderr."""

    log_format: LogFormat = "text"
    """text: lines for a person. json: one object per line. The default can be set by FRAMEFOLD_LOG_FORMAT."""


def with_flag(job: type[J]) -> type[J]:
    """Return the class of a job with the flags of `LogConfig`, and of `ReportConfig` if it has no `json`, behind its own."""
    frozen = bool(getattr(job, "__dataclass_params__").frozen)  # noqa: B009  # types know no such attribute
    added: list[tuple[str, type, Any]] = [("logs", LogConfig, field(default_factory=LogConfig))]
    if "json" not in {one.name for one in fields(job)}:  # type: ignore[arg-type]
        added.append(("report", ReportConfig, field(default_factory=ReportConfig)))
    made = make_dataclass(job.__name__, added, bases=(job,), frozen=frozen, kw_only=True)
    made.__doc__ = job.__doc__
    return made


def log_format(args: Sequence[str]) -> LogFormat:
    """Return the format that a command line or the environment asks for, before anything else of it is understood.

    What is no format stays text here, and is refused where flags are parsed. Raises ConfigError for a wrong variable.
    """
    given = [after for word, after in pairwise([*args, ""]) if _is_flag(word)]
    given += [word.partition("=")[2] for word in args if _is_flag(word.partition("=")[0]) and "=" in word]
    if given:
        return "json" if given[-1] == "json" else "text"
    found = os.environ.get(VARIABLE) or "text"
    if found not in FORMATS:
        raise ConfigError(f"{VARIABLE} must be one of {', '.join(FORMATS)}, got {found!r}")
    return "json" if found == "json" else "text"


def _is_flag(word: str) -> bool:
    return word.replace("_", "-") == FLAG


def run_id() -> str | None:
    """Return the name of this run: FRAMEFOLD_RUN_ID, or the submission id of a job submitted to Ray; None without either."""
    if given := os.environ.get(RUN_ID):
        return given
    with contextlib.suppress(ValueError, AttributeError):
        found = json.loads(os.environ.get(SUBMITTED, "")).get("metadata", {}).get("job_submission_id")
        return None if found is None else str(found)
    return None


def configure(secrets: frozenset[str], wanted: LogFormat) -> None:
    """Send the log to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(secrets, run_id()) if wanted == "json" else Lines(secrets))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.captureWarnings(wanted == "json")
    for noisy in NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)


def say(text: str, level: int, **fields: Any) -> None:
    """Tell the operator one sentence, from which secrets were taken: behind our name, or as an object like other lines."""
    record = logging.LogRecord(NAME, level, __file__, 0, text, None, None)
    record.fields = fields
    formatter = _json_formatter()
    sys.stderr.write((f"{NAME}: {text}" if formatter is None else formatter.format(record)) + "\n")


def say_table(title: str, rows: Sequence[tuple[str, str]], **fields: Any) -> None:
    """Print a title and a table of names and values on stderr; where the log is JSON, one object with `fields` instead."""
    if _json_formatter() is not None:
        say(title, logging.INFO, **fields)
        return
    width = max(len(name) for name, _ in rows)
    lines = [f"{NAME} {title}", *(f"  {name:<{width}}  {value}" for name, value in rows)]
    sys.stderr.write("".join(f"{redact(one_line(line))}\n" for line in lines))


def _json_formatter() -> "JsonLines | None":
    """Return the formatter of a log that is JSON, None where the log is text."""
    formatters = (one.formatter for one in logging.root.handlers)
    return next((one for one in formatters if isinstance(one, JsonLines)), None)


@contextlib.contextmanager
def native_lines_logged() -> Iterator[None]:
    """Turn what native code writes to stderr meanwhile into lines of the log, where that is JSON; else leave it as it comes."""
    if _json_formatter() is None:
        yield
        return
    stderr, said = os.dup(2), tempfile.TemporaryFile()  # noqa: SIM115  # closed below, once fd 2 is another again
    os.dup2(said.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        said.seek(0)
        for line in said.read().decode(errors="replace").splitlines():
            if line.startswith("{"):  # of ours
                sys.stderr.write(line + "\n")
            else:
                logger.info("%s", line)
        said.close()


class Lines(logging.Formatter):
    """Lines without secrets, tracebacks included."""

    def __init__(self, secrets: frozenset[str]) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")
        self.secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and a traceback behind it."""
        return redact(super().format(record), self.secrets)


class JsonLines(logging.Formatter):
    """One JSON object per record, on one line. Secrets are taken out before the text is escaped, which would hide them."""

    def __init__(self, secrets: frozenset[str], run: str | None) -> None:
        super().__init__()
        self.secrets = secrets
        self.run = run

    def format(self, record: logging.LogRecord) -> str:
        """Return the object."""
        fields: Mapping[str, Any] = getattr(record, "fields", {})
        said = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            **({} if self.run is None else {"run": self.run}),
            "message": record.getMessage(),
        }
        if record.exc_info:
            said["exception"] = self.formatException(record.exc_info)
        plain = redact_all({**said, **fields, **said}, self.secrets)  # ours first in the line, and of two by one name
        return json.dumps(plain, default=lambda other: redact(str(other), self.secrets))  # in ASCII: stderr may know no more
