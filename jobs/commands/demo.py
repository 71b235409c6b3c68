"""The whole pipeline on generated videos, with the bundled model: `make demo`.

Writes real MP4 files that the model has never seen, encodes them unreduced and reduced, answers questions about them from
the store, and does it all again to show that the second run opens no video and asks nothing twice.
"""

import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.commands import answer, encode, evaluate, shapes
from jobs.commands.answer import AnswerJob
from jobs.commands.encode import EncodeJob
from jobs.commands.evaluate import EvaluateJob
from jobs.runtime.cluster import ClusterConfig, cluster
from jobs.runtime.launch import Report, launch
from pipeline.answer.stage import AnswerConfig
from pipeline.answer.token_selection import SelectConfig
from pipeline.encode.stage import EncodeConfig
from pipeline.errors import ConfigError

MODEL = Path(__file__).parents[2] / "pipeline" / "synthetic" / "checkpoint"
SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class DemoJob:
    """Encode, answer, evaluate, and once more from the cache, on this machine."""

    out: str = "demo-out"
    """Folder for videos, store and answers; emptied first."""
    videos: int = 24
    """How many."""
    reducers: tuple[str, ...] = ("none", "prumerge+(ratio=0.25)", "visionzip(dominant=13,contextual=3)", "nest(keep=256)")
    """Compared with one another; the first is the baseline."""
    budgets: tuple[int, ...] = (128, 64)
    """Tokens per video that entries of nest are cut to as well, when they are asked: nothing is encoded for them."""
    model: str = str(MODEL)
    """A checkpoint directory."""
    runner: str = "ray"
    """ray or local."""

    def __post_init__(self) -> None:
        if self.videos < 1 or not self.reducers:
            raise ConfigError("expected at least one video and one reducer")


@dataclass(kw_only=True)
class Line:
    """What one reducer, or one cut of its entries, cost and achieved."""

    reducer: str
    budget: int | None
    encoded: Report
    answered: Report
    scores: Report
    first_s: float
    second_s: float = 0.0

    @property
    def name(self) -> str:
        """Return what the tables call it."""
        return self.reducer if self.budget is None else f"  cut to {self.budget} when asked"

    @property
    def tokens(self) -> float:
        """Return the tokens per video that the model saw."""
        return float(self.encoded["tokens_per_video"] if self.budget is None else self.budget)


def run(job: DemoJob) -> Report:
    """Run everything twice and print the table."""
    if not (Path(job.model) / "config.json").is_file():
        raise ConfigError(f"{job.model}: no checkpoint there; train one with framefold train --out {job.model}")
    out = Path(job.out)
    shutil.rmtree(out, ignore_errors=True)
    corpus = shapes.run(shapes.ShapesJob(out=str(out / "corpus"), videos=job.videos))
    _say(f"{job.videos} videos with {corpus['questions']} questions written to {out / 'corpus'}")
    if job.runner == "local":
        lines, again = _twice(job, out)
    else:
        with cluster(ClusterConfig()):
            lines, again = _twice(job, out)
    _print_answers(out, lines)
    _print_table(lines)
    return _summary(job, lines, again)


def _twice(job: DemoJob, out: Path) -> tuple[list[Line], dict[str, int]]:
    lines = []
    for reducer, budget in _asked(job):
        began = time.monotonic()
        encoded, answered = _once(job, out, reducer, budget)
        seconds = time.monotonic() - began
        scores = evaluate.run(_scoring(out, reducer, budget))
        line = Line(reducer=reducer, budget=budget, encoded=encoded, answered=answered, scores=scores, first_s=seconds)
        lines.append(line)
        new = encoded["this_run"].get("committed", 0)
        _say(f"{line.name}: {new} videos encoded, {answered['statuses'].get('ok', 0)} questions answered")
    again = {"encoded": 0, "answered": 0}
    for line in lines:
        began = time.monotonic()
        encoded, answered = _once(job, out, line.reducer, line.budget)
        line.second_s = time.monotonic() - began
        again["encoded"] += encoded["this_run"].get("committed", 0)
        again["answered"] += answered["this_run"].get("answered", 0)
    _say(f"second run: {again['encoded']} encoded, {again['answered']} answered, all cached")
    return lines, again


def _asked(job: DemoJob) -> list[tuple[str, int | None]]:
    """Return the reducers, those of nest followed by their cuts."""
    cuts = {reducer: job.budgets if reducer.startswith("nest") else () for reducer in job.reducers}
    return [(reducer, budget) for reducer in job.reducers for budget in (None, *cuts[reducer])]


def _once(job: DemoJob, out: Path, reducer: str, budget: int | None) -> tuple[Report, Report]:
    config = ClusterConfig(runner=job.runner)
    encoded = encode.run(
        EncodeJob(
            corpus=str(out / "corpus" / "videos"),
            store=str(out / "store"),
            encode=EncodeConfig(model=job.model, reducer=reducer),
            cluster=config,
        )
    )
    answered = answer.run(
        AnswerJob(
            questions=str(out / "corpus" / "test_q.json"),
            store=str(out / "store"),
            out=str(_answers(out, reducer, budget)),
            answer=AnswerConfig(model=job.model, max_new_tokens=8, select=SelectConfig(budget=budget)),
            dataset="activitynet-qa",
            fingerprint=encoded["fingerprint"],
            cluster=config,
        )
    )
    return encoded, answered


def _answers(out: Path, reducer: str, budget: int | None) -> Path:
    name = f"{reducer}-{budget}" if budget else reducer
    return out / "answers" / "".join(c if c.isalnum() else "-" for c in name).strip("-")


def _scoring(out: Path, reducer: str, budget: int | None) -> EvaluateJob:
    predictions = str(_answers(out, reducer, budget) / "answers.jsonl")
    return EvaluateJob(predictions=predictions, questions=str(out / "corpus" / "test_q.json"), dataset="activitynet-qa")


def _print_answers(out: Path, lines: list[Line]) -> None:
    """Print some questions, one of each type first, with the answers of the baseline and the last reducer, and the truth."""
    asked = json.loads((out / "corpus" / "test_q.json").read_text())
    truth = {row["question_id"]: row for row in json.loads((out / "corpus" / "test_a.json").read_text())}
    lines = [line for line in lines if line.budget is None]
    said = [_predictions(out, line) for line in lines]
    shown: dict[int, Any] = {}
    for row in asked:
        shown.setdefault(truth[row["question_id"]]["type"], row)
    rows = [["video", "question", *[line.reducer for line in lines], "truth"]]
    for row in [shown[kind] for kind in sorted(shown)][:SHOWN]:
        key = row["question_id"]
        rows.append([row["video_name"], row["question"], *[one.get(key, "") for one in said], truth[key]["answer"]])
    _print(rows)


def _predictions(out: Path, line: Line) -> dict[str, str]:
    rows = map(json.loads, (_answers(out, line.reducer, line.budget) / "answers.jsonl").read_text().splitlines())
    return {row["question_id"]: row["prediction"] or row["status"] for row in rows}


def _print_table(lines: list[Line]) -> None:
    head = ["reducer", "tokens per video", "bytes per video", "accuracy", "95 % interval", "first run s", "second run s"]
    _print([head, *[[line.name, *_figures(line), f"{line.first_s:.1f}", f"{line.second_s:.1f}"] for line in lines]])


def _figures(line: Line) -> list[str]:
    exact = line.scores["exact"]
    low, high = exact["low"], exact["high"]
    stored = str(line.encoded["bytes_per_video"]) if line.budget is None else "the same"
    interval = "" if low is None else f"{low:.3f} to {high:.3f}"
    return [f"{line.tokens:.0f}", stored, f"{exact['accuracy']:.3f}", interval]


def _print(rows: list[list[str]]) -> None:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for row in rows:
        sys.stdout.write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n")
    sys.stdout.write("\n")


def _summary(job: DemoJob, lines: list[Line], again: dict[str, int]) -> Report:
    per_reducer = {
        line.name.strip(): {
            "tokens_per_video": line.tokens,
            "bytes_per_video": line.encoded["bytes_per_video"],
            "accuracy": line.scores["exact"]["accuracy"],
            "first_run_s": round(line.first_s, 2),
            "second_run_s": round(line.second_s, 2),
        }
        for line in lines
    }
    failed = sum(line.encoded["exit_code"] for line in lines)
    return {"job": "demo", "videos": job.videos, "reducers": per_reducer, "second_run": again, "exit_code": int(failed > 0)}


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def main(args: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    return launch(DemoJob, run, "framefold demo", args)


if __name__ == "__main__":
    sys.exit(main())
