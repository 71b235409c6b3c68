"""Answer questions from the token store: `framefold answer`, or `ray job submit -- python -m jobs.answer`.

No video is opened. Questions are joined to the index on the driver, by video and question id; each video's tokens are read
once for all its questions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from jobs.commands.answer_plan import plan, preview, show
from jobs.commands.answer_run import execute
from jobs.runtime.cluster import ClusterConfig, check_share
from jobs.runtime.launch import Report, launch, storage_options, with_values
from jobs.runtime.telemetry import check_metrics_file, metered
from pipeline.answer.stage import AnswerConfig
from pipeline.errors import ConfigError, check_at_least_one


@dataclass(frozen=True, kw_only=True)
class AnswerJob:
    """Answer every question of a file that has no answer yet, from stored tokens."""

    questions: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="QUESTIONS")]
    """Question file of a data set, conversations, or JSONL, CSV, Parquet with video_id, question[, question_id, answer]."""
    store: str
    """Root of the token store; any fsspec URL."""
    out: str
    """Folder for answers.jsonl and answers.parquet; any fsspec URL."""
    answer: AnswerConfig
    dataset: Literal["auto", "activitynet-qa", "msvd-qa", "msrvtt-qa", "tgif-qa", "plain"] = "auto"
    """auto tells it by columns and video names."""
    fingerprint: str | None = None
    """Which entries of the store, by the beginning of their fingerprint; needed where it holds several."""
    reducer: str | None = None
    """Instead of the fingerprint: the reducer of the entries, e.g. "nest(keep=256)", or its name alone."""
    aliases: str | None = None
    """Other names of videos: MSVD's youtube_mapping.txt, or CSV, JSONL, Parquet with columns name and video_id."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    engines: int = 1
    """Answering actors."""
    gpus_per_engine: float = 0.0
    """GPUs of each engine; 0 answers on the CPU."""
    videos_per_unit: int = 8
    """Videos whose questions are answered and committed together."""
    max_unanswered: int | None = None
    """Exit with 1 if more questions than this end without an answer; default: they are counted, no more."""
    metrics_file: str | None = None
    """Write metrics for Prometheus to this file, on the driver's machine and renewed as it runs; node_exporter reads *.prom."""
    storage_options: str = "{}"
    """JSON object for fsspec, used for store and output."""
    dry_run: bool = False
    """Check all settings, print what a run would do, and write nothing."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "engines", "videos_per_unit")
        if self.max_unanswered is not None and self.max_unanswered < 0:
            raise ConfigError(f"max_unanswered must not be negative, got {self.max_unanswered}")
        check_share("gpus_per_engine", self.gpus_per_engine)
        wanted = self.answer.vllm.tensor_parallel_size
        if self.answer.engine == "vllm" and self.gpus_per_engine not in (0, wanted):
            raise ConfigError(
                "--engine vllm requires --gpus-per-engine 0 or the value of --tensor-parallel-size: "
                f"expected 0 or {wanted}, got {self.gpus_per_engine:g}"
            )

    @property
    def options(self) -> dict[str, Any]:
        """Return the storage options as a mapping."""
        return storage_options(self.storage_options)


def run(job: AnswerJob) -> Report:
    """Answer what is pending, then write every question once, in the order of its file.

    With `dry_run` the plan is printed and returned, and nothing is written.
    """
    if job.dry_run:
        check_metrics_file(job.metrics_file)
        return show(preview(plan(job)))
    return metered("answer", job.metrics_file, job.cluster.runner, lambda meter: execute(plan(job), meter))


def main(args: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    return launch(AnswerJob, run, "framefold answer", with_values(args, "--dry-run"))
