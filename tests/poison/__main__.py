"""`python -m tests.poison --files 10000`: the long version of the poison suite; exit 1 where one file is not as promised."""

import argparse
import statistics
import sys
import time
from pathlib import Path

from pipeline.decode.config import DecodeConfig
from pipeline.decode.stage import Decode
from tests.poison.mutate import VIDEOS, mutants, seeds
from tests.poison.push import Pushed, push


def main() -> int:
    flags = argparse.ArgumentParser(prog="python -m tests.poison", description=__doc__)
    flags.add_argument("--files", type=int, default=10_000, help="damaged files")
    flags.add_argument("--seed", type=int, default=0, help="another seed, other files")
    flags.add_argument("--deadline-s", type=float, default=20.0, help="of each file")
    flags.add_argument("--side-px", type=int, default=56)
    flags.add_argument("--videos", type=Path, nargs="*", default=[VIDEOS], help="folders of files to damage")
    flags.add_argument("--keep", type=Path, help="folder for the files that cost a child its life")
    given = flags.parse_args()
    if given.keep:
        given.keep.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with Decode(DecodeConfig(deadline_s=given.deadline_s), given.side_px) as stage:
        report = push(stage, _said(mutants(seeds(*given.videos), given.files, given.seed), began), given.keep)
    sys.stdout.write(table(report, time.monotonic() - began))
    return 1 if report.faults or report.files != given.files else 0


def _said(files, began):
    for number, file in enumerate(files):
        if number and number % 500 == 0:
            sys.stderr.write(f"{number} files, {time.monotonic() - began:.0f} s\n")
        yield file


def table(report: Pushed, seconds: float) -> str:
    """Return the report for a person."""
    rows = [("files", f"{report.files} in {seconds:.0f} s")]
    rows += [(f"  {kind}", str(count)) for kind, count in sorted(report.kinds.items())]
    rows += [(code, str(count)) for code, count in report.classes.most_common()]
    rows += [("longest", f"{report.longest_s:.2f} s, {report.longest}")]
    rows += [(f"children: {why}", str(count)) for why, count in sorted(report.children.items())]
    if report.neighbours_s:
        median, longest = statistics.median(report.neighbours_s), max(report.neighbours_s)
        rows += [("good neighbours", f"{len(report.neighbours_s)}, median {median:.3f} s, longest {longest:.2f} s")]
    rows += [(name, str(len(getattr(report, name)))) for name in ("disturbed", "untyped", "hung")]
    return "".join(f"{name:<24} {value}\n" for name, value in rows) + "".join(f"FAULT {line}\n" for line in report.faults)


if __name__ == "__main__":
    sys.exit(main())
