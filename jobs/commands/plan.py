"""`framefold plan COMMAND ...`: the same as `framefold COMMAND ... --dry-run`."""

import importlib
import sys
from collections.abc import Sequence

PLANNED = ("encode", "answer", "caption")
USAGE = """usage: framefold plan {encode,answer,caption} ...

Print what a command would do and write nothing; the flags are those of the command.
"""


def main(args: Sequence[str] | None = None) -> int:
    """Run a command with `--dry-run`. Returns its exit code, 2 for a command without a plan."""
    given = list(sys.argv[1:] if args is None else args)
    if not given or given[0] in ("-h", "--help"):
        sys.stdout.write(USAGE)
        return 0 if given else 2
    if given[0] not in PLANNED:
        sys.stderr.write(f"framefold: no plan for the command {given[0]!r}, expected one of {', '.join(PLANNED)}\n")
        return 2
    code: int = importlib.import_module(f"jobs.commands.{given[0]}").main([*given[1:], "--dry-run"])
    return code
