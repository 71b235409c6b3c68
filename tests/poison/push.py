"""Push damaged files through the real decode stage and count what becomes of them."""

import hashlib
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.decode.stage import Decode
from pipeline.decode.worker_client import START_S
from pipeline.errors import VIDEO_CODES
from pipeline.schema import CORPUS, DECODED
from tests.poison.mutate import VIDEOS, Mutant

NEIGHBOUR = VIDEOS / "unordered.mov"
"""A good video, decoded again and again among the bad ones."""
SLACK_S = START_S
"""What a killed child may cost beside its deadline: starting another on a busy machine takes most of it."""


@dataclass(kw_only=True)
class Pushed:
    """What became of the files."""

    files: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)
    """By class; `decoded` where there are frames."""
    longest_s: float = 0.0
    longest: str = ""
    neighbours_s: list[float] = field(default_factory=list)
    untyped: list[str] = field(default_factory=list)
    """Files whose row is neither a clip nor a class."""
    hung: list[str] = field(default_factory=list)
    """Files that took longer than the deadline and what a kill costs."""
    disturbed: list[str] = field(default_factory=list)
    """Files after which the good video did not give its frames."""
    children: Counter[str] = field(default_factory=Counter)
    """How decoding processes ended."""

    @property
    def faults(self) -> list[str]:
        """Return what must not be."""
        return [f"{fault}: {name}" for fault in ("untyped", "hung", "disturbed") for name in getattr(self, fault)]


def one(stage: Decode, path: Path) -> tuple[dict[str, Any], float]:
    """Return the row of one file and how long it took, in seconds."""
    table = pa.Table.from_pylist([{"video_id": path.name, "uri": str(path), "source_hint": "{}"}], schema=CORPUS)
    began = time.monotonic()
    rows = stage(table)
    assert rows.schema == DECODED
    return rows.to_pylist()[0], time.monotonic() - began


def push(stage: Decode, files: Iterable[Mutant], keep: Path | None = None, every: int = 20) -> Pushed:
    """Decode each file, and a good neighbour after every few. Files with a fault or a killed child are kept in a folder."""
    report, wanted = Pushed(), digest(one(stage, NEIGHBOUR)[0])
    with tempfile.TemporaryDirectory(prefix="poison-") as folder:
        path = Path(folder) / "video.mp4"
        for mutant in files:
            path.write_bytes(mutant.content)
            row, seconds = one(stage, path)
            _count(report, mutant, row, seconds, stage.config.deadline_s)
            if report.files % every == 0:
                neighbour, seconds = one(stage, NEIGHBOUR)
                report.neighbours_s.append(seconds)
                report.disturbed += [] if digest(neighbour) == wanted else [mutant.name]
            if keep is not None and row["error_class"] in ("TIMEOUT", "CRASHED", "OUT_OF_MEMORY"):
                (keep / f"{row['error_class']}-{mutant.name}").write_bytes(mutant.content)
    report.children = Counter(stage.child.ended)
    return report


def digest(row: dict[str, Any]) -> str:
    """Return what stands for the frames of a row."""
    return hashlib.sha256(row["frames"] or b"").hexdigest()


def _count(report: Pushed, mutant: Mutant, row: dict[str, Any], seconds: float, deadline_s: float) -> None:
    report.files += 1
    report.kinds[mutant.kind] += 1
    report.classes[row["error_class"] or "decoded"] += 1
    decoded = row["error_class"] is None and row["frames"] is not None and row["error"] is None
    failed = row["error_class"] in VIDEO_CODES and row["frames"] is None and bool(row["error"])
    report.untyped += [] if decoded or failed else [mutant.name]
    report.hung += [mutant.name] if seconds > deadline_s + SLACK_S else []
    if seconds > report.longest_s:
        report.longest_s, report.longest = seconds, mutant.name
