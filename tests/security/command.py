"""The real encode command on a video of ours, as a process of its own."""

import subprocess
import sys
from pathlib import Path

from tests.command import ROOT, environment

CLIP = ROOT / "tests" / "videos" / "unordered.mov"

HURRIED = """
import sys
from pipeline import patience
patience.FIRST_WAIT_S = 0.01
from jobs.encode import main
sys.exit(main())
"""
"""The real command, with short waits between the tries of storage that is not there."""


def encode(corpus: str, store: str, model: str, *more: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    flags = ["--model", model, "--runner", "local", "--reducer", "spatial(k=2)", *more]
    command = [sys.executable, "-c", HURRIED, corpus, "--store", store, *flags]
    return subprocess.run(
        command, cwd=cwd, env=environment(AWS_MAX_ATTEMPTS="1", **env), capture_output=True, text=True, check=False
    )
