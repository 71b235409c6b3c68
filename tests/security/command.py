"""The real encode command on a video of ours, as a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
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
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "AWS_MAX_ATTEMPTS": "1", **env}
    flags = ["--model", model, "--runner", "local", "--reducer", "spatial(k=2)", *more]
    command = [sys.executable, "-c", HURRIED, corpus, "--store", store, *flags]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
