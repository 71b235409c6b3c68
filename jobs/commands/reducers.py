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
        foreign = _foreign()
        plugins = {"plugins": foreign} if foreign else {}
        return {"reducers": listed, **plugins, "compositions": {"first": list(FIRST), "second": list(SECOND)}}
    rows = [("reducer", "runs", "what it does"), *((name, _when(about), about["summary"]) for name, about in listed.items())]
    _write_rows(rows)
    sys.stdout.write("\nparameters and their defaults\n")
    for name, about in listed.items():
        arguments = ", ".join(f"{key}: {told['type']} = {told['default']}" for key, told in about["parameters"].items())
        sys.stdout.write(f"  {name}({arguments})\n")
    sys.stdout.write("\ncompositions: FIRST|SECOND\n")
    _write_rows([("first", "", "what it does"), *((name, "", first.about) for name, first in FIRST.items())])
    sys.stdout.write(f"\nsecond: {', '.join(SECOND)}\n")
    if foreign := _foreign():
        sys.stdout.write("\n")
        _write_rows([("of other distributions", "", "what it does"), *((name, "", what) for name, what in foreign.items())])
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


def _foreign() -> dict[str, str]:
    """Return what there is to say about each reducer of another distribution, or why it cannot be used."""
    from reducers import plugins

    found = {}
    for name in plugins.names():
        try:
            known = plugins.find(name)
            found[name] = "" if known is None else f"{plugins.label(known[1])}: {_summary(known[1])}"
        except plugins.PluginError as error:
            found[name] = str(error)
    return found


def _summary(kind: type) -> str:
    return (kind.__doc__ or "no docstring").strip().partition("\n")[0]


def main(args: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    return launch(ReducersJob, run, "framefold reducers", args)


if __name__ == "__main__":
    sys.exit(main())
