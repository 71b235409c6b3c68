"""The report of a command: a table on a terminal, one line of JSON for programs."""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from pipeline.errors import StorageError
from pipeline.names import json_line, one_line

Report = dict[str, Any]
FLAG = "--json"
LISTED = 10
"""Rows of a list that the table shows."""


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """The form of the report."""

    json: bool = False
    """Print the report as one line of JSON on a terminal too; elsewhere it always is."""


def write_report(report: Report, *, as_json: bool) -> None:
    """Write a report to stdout: as a table where that is a terminal and JSON is not asked for.

    Raises BrokenPipeError where its reader has ended, StorageError where nothing can be written.
    """
    as_table = sys.stdout.isatty() and not as_json
    text = "\n".join(table(report)) if as_table else json_line(report, ascii_only=not _is_unicode(sys.stdout))
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that nothing is tried again at the end
        raise StorageError(f"the report cannot be written to stdout: {error.strerror}") from error


def table(report: Report) -> Iterator[str]:
    """Yield the lines of a report: a name and a value each, rows of a list below their name."""
    width = max((len(name) for name in report), default=0)
    for name, value in report.items():
        if _is_rows(value):
            yield f"{name:<{width}}  {len(value)}"
            yield from (f"{'':<{width}}  {_text(row)}" for row in value[:LISTED])
        else:
            yield f"{name:<{width}}  {_text(value)}"


def _is_rows(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, Mapping) for row in value)


def _text(value: object) -> str:
    """Return a value as text: pairs of an object or items of a list one after another, deeper ones as JSON."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_flat(inner)}" for name, inner in value.items()) or "none"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_flat(item) for item in value) or "none"
    return _flat(value)


def _flat(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return json.dumps(value, default=str) if isinstance(value, Mapping | list) else one_line(str(value))


def _is_unicode(stream: TextIO) -> bool:
    return (stream.encoding or "utf-8").lower().replace("-", "").startswith("utf")
