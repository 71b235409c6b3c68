"""The real encode command on a video of ours, as a process of its own."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests import forked
from tests.command import ROOT, environment

CLIP = ROOT / "tests" / "videos" / "unordered.mov"


def hurried(args: Sequence[str]) -> int:
    """The real command, with short waits between the tries of storage that is not there."""
    from jobs.commands.encode import main
    from pipeline.storage import retry

    retry.FIRST_WAIT_S = 0.01
    return main(args)


def encode(corpus: str, store: str, model: str, *more: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    flags = ["--model", model, "--runner", "local", "--reducer", "spatial(k=2)", *more]
    return forked.run(hurried, [corpus, "--store", store, *flags], cwd, environment(AWS_MAX_ATTEMPTS="1", **env))
