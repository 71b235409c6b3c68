"""List the reducers: `framefold reducers`."""

import sys
from collections.abc import Sequence
from dataclasses import MISSING, dataclass

from jobs.launch import Report, launch


@dataclass(frozen=True, kw_only=True)
class ReducersJob:
    """List the reducers with their parameters, what they need of the tower, and whether they read the question."""


def run(job: ReducersJob) -> Report:
    """Print a line per reducer; the report holds the same as data."""
    from reducers.registry import METHODS, parameters

    listed = {}
    for name, (_, build) in METHODS.items():
        params = {key: _shown(kind, default) for key, (kind, default) in parameters(name).items()}
        summary = (build.__doc__ or "").strip().splitlines()[0]
        arguments = ", ".join(f"{key}: {value}" for key, value in params.items())
        sys.stdout.write(f"{name}({arguments})\n    {summary}\n")
        needs_text = bool(getattr(build, "needs_text", False))
        listed[name] = {"parameters": params, "needs_text": needs_text, "version": getattr(build, "version", None)}
    return {"reducers": listed}


def _shown(kind: str, default: object) -> str:
    return kind if default is MISSING else f"{kind} = {default}"


def main(args: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    return launch(ReducersJob, run, "framefold reducers", args)


if __name__ == "__main__":
    sys.exit(main())
