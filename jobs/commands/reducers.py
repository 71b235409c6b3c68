"""List the reducers: `framefold reducers`, or as the page of the documentation with `--markdown`."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.runtime.launch import Report, launch


@dataclass(frozen=True, kw_only=True)
class ReducersJob:
    """List the reducers with their parameters, what they need of the tower, and whether they read the question."""

    json: bool = False
    """Print them as one JSON object."""
    markdown: bool = False
    """Print docs/reducers.md and no report."""
    pictures: str | None = None
    """Folder, e.g. docs/pictures: write a PNG per reducer of which patches of a clip survive, instead of a list."""


def run(job: ReducersJob) -> Report:
    """Print a table of the reducers; the report holds the same as data."""
    from jobs.docs_gen.catalogue import entry, markdown
    from reducers.compose.selectors import FIRST
    from reducers.compose.spenders import SECOND
    from reducers.registry import names

    if job.pictures is not None:
        from jobs.docs_gen.pictures import write

        return {"job": "reducers", "pictures": write(job.pictures)}
    if job.markdown:
        sys.stdout.write(markdown())
        return {"exit_code": 0, "silent": True}
    listed = {name: entry(name) for name in names()}
    if job.json:
        return {"reducers": listed, "compositions": {"first": list(FIRST), "second": list(SECOND)}}
    rows = [("reducer", "runs", "what it does"), *((name, _when(about), about["summary"]) for name, about in listed.items())]
    _write_rows(rows)
    sys.stdout.write("\nparameters and their defaults\n")
    for name, about in listed.items():
        arguments = ", ".join(f"{key}: {told['type']} = {told['default']}" for key, told in about["parameters"].items())
        sys.stdout.write(f"  {name}({arguments})\n")
    sys.stdout.write("\ncompositions: FIRST|SECOND\n")
    _write_rows([("first", "", "what it does"), *((name, "", first.about) for name, first in FIRST.items())])
    sys.stdout.write(f"\nsecond: {', '.join(SECOND)}\n")
    return {"silent": True}


def _when(about: Mapping[str, Any]) -> str:
    """Return when a reducer runs. Any: descriptions hold values of several types."""
    if about["needs_text"]:
        return "with each question, in framefold answer"
    return "inside the tower" if about["modifies_tower"] else "after the tower"


def _write_rows(rows: Sequence[tuple[str, str, str]]) -> None:
    """Write rows in columns."""
    wide, when = (max(len(row[column]) for row in rows) for column in (0, 1))
    for name, runs, what in rows:
        sys.stdout.write(f"{name:<{wide}}  " + (f"{runs:<{when}}  " if when else "") + f"{what}\n")


def main(args: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    return launch(ReducersJob, run, "framefold reducers", args)


if __name__ == "__main__":
    sys.exit(main())
