"""List the reducers: `framefold reducers`, or as the page of the documentation with `--markdown`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.runtime.launch import Report, launch


@dataclass(frozen=True, kw_only=True)
class ReducersJob:
    """List the reducers with their parameters, what they need of the tower, and whether they read the question."""

    markdown: bool = False
    """Print docs/reducers.md and no report."""
    pictures: str | None = None
    """Folder, e.g. docs/pictures: write a PNG per reducer of which patches of a clip survive, instead of a list."""


def run(job: ReducersJob) -> Report:
    """Print a line per reducer; the report holds the same as data."""
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
    for name, about in listed.items():
        arguments = ", ".join(f"{key}: {told['type']} = {told['default']}" for key, told in about["parameters"].items())
        when = " (reads the question: give it to framefold answer)" if about["needs_text"] else ""
        sys.stdout.write(f"{name}({arguments})\n    {about['summary']}{when}\n")
    foreign = _foreign()
    for name, summary in foreign.items():
        sys.stdout.write(f"{name}\n    {summary}\n")
    sys.stdout.write(f"\ncompositions: one of {', '.join(FIRST)}, then one of {', '.join(SECOND)}\n")
    for name, first in FIRST.items():
        sys.stdout.write(f"{name}(...)|...\n    {first.about}\n")
    plugins = {"plugins": foreign} if foreign else {}
    return {"reducers": listed, **plugins, "compositions": {"first": list(FIRST), "second": list(SECOND)}}


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
