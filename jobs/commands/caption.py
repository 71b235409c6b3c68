"""Caption a corpus: `framefold caption`, or `ray job submit -- python -m jobs.caption`, every night.

What is new or changed is encoded, what has no caption under these settings is captioned, and the files of captions say what is
true of the corpus then. A run that finds nothing to do changes nothing; the files of two that overlap hold what either saw.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro

from jobs.commands.caption_plan import plan, preview, show
from jobs.commands.caption_run import execute
from jobs.runtime.cluster import ClusterConfig
from jobs.runtime.launch import Report, launch, storage_options, with_values
from jobs.runtime.telemetry import check_metrics_file, metered
from pipeline.corpus.segments import check_seconds
from pipeline.decode.config import DecodeConfig
from pipeline.encode.stage import EncodeConfig
from pipeline.engines.vllm_config import VllmConfig
from pipeline.errors import ConfigError
from pipeline.models.prompts import VIDEO


@dataclass(frozen=True, kw_only=True)
class CaptionJob:
    """Encode what is new or changed, caption what has no caption, write captions.jsonl and captions.parquet.

    The files describe the corpus of the last run. Overlapping runs are merged: for a video that both captioned, the caption
    of the run that began last is kept.
    """

    corpus: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CORPUS")]
    """Directory, glob or manifest (.parquet, .csv, .jsonl with video_id, uri); any fsspec URL."""
    store: str
    """Root of the token store; any fsspec URL."""
    out: str
    """Folder for the captions; any fsspec URL."""
    encode: EncodeConfig
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    prompt: str = "Describe what happens in the video."
    """What the model is asked."""
    style: Literal["docs", "original"] = "docs"
    """Text around it, as in `framefold answer`."""
    max_new_tokens: int = 128
    """Longest caption, in tokens."""
    answer_dtype: str = "auto"
    """Compute type of the language model: float32, bfloat16, float16; auto is bfloat16 on a GPU and float32 without one."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What runs the language model; vllm needs `pip install 'framefold[vllm]'`."""
    vllm: VllmConfig = field(default_factory=VllmConfig)
    budget: int | None = None
    """Tokens per video that the model sees, folded from entries of nest."""
    coverage: float | None = None
    """Instead of a budget: as many tokens as explain this share of each video, e.g. 0.9. Entries of nest."""
    identity: Literal["name", "content"] = "name"
    """content: a renamed or copied video is known by the SHA-256 of its bytes and not encoded again; not with segments."""
    segments: float | None = None
    """Cut each video into segments of so many seconds; each gets a caption, and each video subtitles."""
    decoders: int = 1
    """Decoding actors, each with a child process and a CPU."""
    encoders: int = 1
    """Encoding actors."""
    gpus_per_encoder: float = 0.0
    """GPUs of each encoder; 0 encodes on the CPU."""
    engines: int = 1
    """Captioning actors."""
    gpus_per_engine: float = 0.0
    """GPUs of each engine; 0 captions on the CPU."""
    videos_per_unit: int = 64
    """Videos that are committed together."""
    retry: tuple[str, ...] = ()
    """Classes of failure to try again, e.g. TIMEOUT CRASHED."""
    max_failed: int = 0
    """Exit with 1 if more videos, or segments, than this have no caption."""
    metrics_file: str | None = None
    """Write metrics for Prometheus to this file, on the driver's machine and renewed as it runs; node_exporter reads *.prom."""
    storage_options: str = "{}"
    """JSON object for fsspec, used for the corpus, the store and the captions."""
    dry_run: bool = False
    """Check all settings, print what a run would do, and write nothing."""

    def __post_init__(self) -> None:
        if self.segments is not None:
            check_seconds(self.segments)
        if self.out.rstrip("/") == self.store.rstrip("/"):
            raise ConfigError(f"--out must differ from --store (a subdirectory of it is fine), got {self.out} for both")
        if not self.prompt.strip():
            raise ConfigError("the prompt is empty: expected what the captions should describe")
        if VIDEO in self.prompt:
            raise ConfigError(f"the prompt must not contain {VIDEO}: the video is shown in front of it")
        if self.max_failed < 0:
            raise ConfigError(f"max_failed must not be negative, got {self.max_failed}")

    @property
    def options(self) -> dict[str, Any]:
        """Return the storage options as a mapping."""
        return storage_options(self.storage_options)


def run(job: CaptionJob) -> Report:
    """Encode, caption, write the files. With `dry_run` the plan is printed and returned, and nothing is written."""
    if job.dry_run:
        check_metrics_file(job.metrics_file)
        return show(preview(plan(job)))
    return metered("caption", job.metrics_file, job.cluster.runner, lambda meter: execute(plan(job), meter))


def main(args: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    return launch(CaptionJob, run, "framefold caption", with_values(args, "--dry-run"))
