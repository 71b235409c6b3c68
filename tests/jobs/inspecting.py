"""What tests of `framefold inspect` share."""

import json
from pathlib import Path
from typing import Any

from pipeline.decode.config import DecodeConfig
from pipeline.decode.inspection import Inspection, Inspector
from tests.command import ROOT, framefold
from tests.frames.writing import Coding, write

VIDEOS = ROOT / "tests" / "videos"
WIDTH, HEIGHT, BOX_PX = 96, 64, 256


def facts(*args: str | Path) -> list[dict[str, Any]]:
    """What `--json` says of each video."""
    ran = framefold("inspect", "--json", *map(str, args))
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert lines[-1]["job"] == "inspect", ran.stderr
    assert lines[-1]["exit_code"] == ran.returncode
    return lines[:-1]


def inspected(path: Path | str, **settings: Any) -> Inspection:
    with Inspector(DecodeConfig(**settings), BOX_PX) as inspector:
        return inspector.inspect(str(path))


def x264(path: Path, frames: int, private: str, gop: int = 12, **more: Any) -> Path:
    coding = Coding(options={"preset": "veryfast", "crf": "14", "g": str(gop)}, private=f"scenecut=0:{private}")
    return write(path, frames, coding, **more)
