"""`python -m tests.golden DIR [DIR ...]`: one line per failing case, then `N passed, N failed, N skipped`."""

import sys
from pathlib import Path

from tests.golden.cases import Case, differences, read_cases
from tests.golden.methods import run


def judge(case: Case) -> str | None:
    """Return "skipped", what is wrong with a case, or None where all is right."""
    try:
        got = run(case)
    except Exception as error:  # a case that raises is a failing case; the others still run
        return f"{type(error).__name__}: {error}"
    if got is None:
        return "skipped"
    return "; ".join(differences(case, got)) or None


def main(directories: list[str]) -> int:
    """Run all cases of some directories; return the exit code."""
    if not directories:
        print("usage: python -m tests.golden DIR [DIR ...]", file=sys.stderr)
        return 2
    try:
        cases = [case for directory in directories for case in read_cases(Path(directory))]
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    verdicts = [(case, judge(case)) for case in cases]
    for case, verdict in verdicts:
        if verdict not in (None, "skipped"):
            print(f"FAILED {case.id} ({case.method}, {case.tier}): {verdict}")
    skipped = sum(verdict == "skipped" for _, verdict in verdicts)
    passed = sum(verdict is None for _, verdict in verdicts)
    print(f"{passed} passed, {len(cases) - passed - skipped} failed, {skipped} skipped")
    return int(passed + skipped < len(cases))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
