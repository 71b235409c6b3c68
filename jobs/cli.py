"""`framefold COMMAND ...`: one command per job; nothing is imported before its command is named."""

import importlib
import signal
import sys
from collections.abc import Sequence

from pipeline.extras import missing_extra

COMMANDS = {
    "encode": "encode every video of a corpus that the token store does not hold yet",
    "answer": "answer a file of questions from the token store",
    "caption": "encode new videos and caption those without a caption; made for a nightly schedule",
    "plan": "print what encode, answer or caption would do, and write nothing",
    "chat": "ask questions about one stored video, turn by turn",
    "evaluate": "score predictions against a data set",
    "inspect": "show what the decoder reads in a video and which frames it samples",
    "store": "list, check and maintain a token store: ls, stats, show, verify, repair, compact, gc, retry, export",
    "calibrate": "find similarity thresholds for a corpus and a tower",
    "reducers": "list the reducers with their parameters",
    "shapes": "write a corpus of moving shapes: MP4 files with questions and answers",
    "train": "train the bundled model from nothing",
    "bench": "measure this machine: store, answer, encode, decode, steps, efficiency, reducers, tome",
    "demo": "run the whole pipeline on generated videos with the bundled model",
}


def usage() -> str:
    """Return the list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    head = "usage: framefold COMMAND ...\n\nEncode videos once into few visual tokens, ask anything later.\n"
    return "\n".join([head, *lines, "\nframefold COMMAND --help lists the flags of a command."])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(usage() + "\n")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from importlib.metadata import version

        sys.stdout.write(f"framefold {version('framefold')}\n")
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        sys.stderr.write(f"framefold: unknown command {name!r}, expected one of {', '.join(COMMANDS)}\n")
        return 2
    home = "jobs.bench" if name == "bench" else f"jobs.commands.{name}"
    try:
        code: int = importlib.import_module(home).main(arguments[1:])
    except ModuleNotFoundError as error:
        if (missing := missing_extra(error)) is None:
            raise
        sys.stderr.write(f"framefold: {missing}\n")
        code = 2
    except KeyboardInterrupt:  # while libraries load; a job that began has its own answer
        sys.stderr.write("framefold: stopped; run the same command again to go on\n")
        code = 3
    if argv is None:  # the process ends: a further signal must not change what it says
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    return code


if __name__ == "__main__":
    sys.exit(main())
