"""`framefold bench WHAT ...`: measure this machine. Every table prints its own yardstick in the same run."""

import importlib
import sys
from collections.abc import Sequence

BENCHES = {
    "store": "the token store beside raw pyarrow: write, read, look-up, open, nothing to do",
    "answer": "answers per second from a store, beside the loop of the transformers documentation",
    "encode": "clips per second of the whole encode job, beside the tower alone",
    "decode": "CPU seconds per clip, beside raw decord, PyAV and torchcodec, and whether their frames are the same",
    "steps": "a step of generation: kernel by kernel, in fixed shapes, compiled",
    "efficiency": "FLOPs, prefill time and memory by number of visual tokens, by the roofline and measured",
    "reducers": "each reducer beside the tower and beside a naive loop of the same method",
    "tome": "the tower with token merging inside beside the tower without",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in BENCHES:
        code: int = importlib.import_module(f"jobs.bench.{arguments[0]}").main(arguments[1:])
        return code
    width = max(map(len, BENCHES))
    lines = [f"  {name:<{width}}  {text}" for name, text in BENCHES.items()]
    usage = "\n".join(["usage: framefold bench WHAT ...", "", *lines, "", "framefold bench WHAT --help lists the flags.\n"])
    asked = arguments in (["-h"], ["--help"])
    (sys.stdout if asked else sys.stderr).write(usage)
    return 0 if asked else 2
