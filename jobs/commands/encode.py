"""Encode a corpus: `framefold encode`, or `ray job submit -- python -m jobs.encode`. Run it twice, it works once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from jobs.commands.encode_plan import plan, preview, show
from jobs.commands.encode_run import execute
from jobs.runtime.cluster import ClusterConfig, check_share
from jobs.runtime.launch import Report, launch, storage_options, with_values
from jobs.runtime.telemetry import check_metrics_file, metered
from pipeline.corpus.segments import check_seconds
from pipeline.decode.config import DecodeConfig
from pipeline.encode.stage import EncodeConfig
from pipeline.errors import ConfigError, check_at_least_one, video_codes


@dataclass(frozen=True, kw_only=True)
class EncodeJob:
    """Encode every video of a corpus that the token store does not hold yet."""

    corpus: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CORPUS")]
    """Directory, glob or manifest (.parquet, .csv, .jsonl with video_id, uri); any fsspec URL."""
    store: str
    """Root of the token store; any fsspec URL."""
    encode: EncodeConfig
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    decoders: int = 1
    """Decoding actors, each with a child process and a CPU."""
    encoders: int = 1
    """Encoding actors."""
    gpus_per_encoder: float = 0.0
    """GPUs of each encoder; 0 encodes on the CPU, 0.5 lets two share a GPU."""
    segments: float | None = None
    """Cut each video into segments of so many seconds; each is an entry, `name#t=start,end`."""
    videos_per_unit: int = 64
    """Videos that are committed together: what a crash may cost, and the number of entries in a shard."""
    retry: tuple[str, ...] = ()
    """Classes of failure to try again, e.g. TIMEOUT CRASHED."""
    identity: Literal["name", "content"] = "name"
    """name: encode videos with a new id, or with another size, time or ETag. content: hash such a video first, and reuse an
    entry of the same bytes under any id, for renamed or copied files."""
    max_failed: int = 0
    """Exit with 1 if more videos of the corpus than this have failed."""
    metrics_file: str | None = None
    """Write metrics for Prometheus to this file, on the driver's machine and renewed as it runs; node_exporter reads *.prom."""
    storage_options: str = "{}"
    """JSON object for fsspec, e.g. '{"endpoint_url": "http://127.0.0.1:9000"}'; used for the corpus and the store."""
    dry_run: bool = False
    """Check all settings, print what a run would do, and write nothing."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "decoders", "encoders", "videos_per_unit")
        if self.segments is not None:
            check_seconds(self.segments)
        if self.segments is not None and self.identity == "content":
            raise ConfigError("--identity content cannot be combined with --segments: use --identity name")
        if self.max_failed < 0:
            raise ConfigError(f"max_failed must not be negative, got {self.max_failed}")
        check_share("gpus_per_encoder", self.gpus_per_encoder)
        video_codes(self.retry)

    @property
    def options(self) -> dict[str, Any]:
        """Return the storage options as a mapping."""
        return storage_options(self.storage_options)


def run(job: EncodeJob) -> Report:
    """Decode, encode, commit. Every video ends in the store with its tokens, or in the index with its failure.

    With `dry_run` the plan is printed and returned, and nothing is written.
    """
    if job.dry_run:
        check_metrics_file(job.metrics_file)
        return show(preview(plan(job)))
    return metered("encode", job.metrics_file, job.cluster.runner, lambda meter: execute(plan(job), meter)[1])


def main(args: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    return launch(EncodeJob, run, "framefold encode", with_values(args, "--dry-run"))
