"""The console script `framefold`: it reports a module that shadows one of ours in one sentence, then runs the command line.

It lies beside the package `framefold`, whose import fails where a package is shadowed.
"""

import sys


def main() -> int:
    """Run one command. Returns the exit code; 2 if a module of another project shadows a package of ours."""
    try:
        import framefold  # noqa: F401
    except ImportError as error:
        sys.stderr.write(f"framefold: {error}\n")
        return 2
    from jobs.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
