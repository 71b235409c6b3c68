"""Caption a corpus: `framefold caption`, or `ray job submit -- python -m jobs.caption`, every night.

What is new or changed is encoded, what has no caption under these settings is captioned, and the files of captions say what is
true of the corpus then. A run that finds nothing to do changes nothing; the files of two that overlap hold what either saw.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pyarrow as pa
import tyro

from jobs.commands import answer, encode
from jobs.commands.answer import AnswerJob
from jobs.commands.encode import EncodeJob
from jobs.runtime.cluster import ClusterConfig, cluster
from jobs.runtime.launch import STOPPED, Report, exit_code, launch, storage_options
from jobs.runtime.telemetry import Meter, metered
from pipeline.answer.answer_store import QUESTIONS_ASKED
from pipeline.answer.caption_runs import View, Views
from pipeline.answer.stage import AnswerConfig
from pipeline.answer.token_selection import SelectConfig, check_selection
from pipeline.corpus.segments import check_seconds, span_of
from pipeline.decode.config import DecodeConfig
from pipeline.encode.stage import EncodeConfig, parse_reducer
from pipeline.engines.vllm_config import VllmConfig
from pipeline.errors import ConfigError
from pipeline.models.prompts import VIDEO, PromptTemplate
from pipeline.storage.filesystem import open_root
from pipeline.storage.preflight import check_reachable
from pipeline.store.token_store import TokenStore

QUESTION_ID = "caption"


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
    """Encode, caption, write the files."""
    return metered("caption", job.metrics_file, job.cluster.runner, lambda meter: _checked(job, meter))


def _checked(job: CaptionJob, meter: Meter) -> Report:
    from pipeline.models.checkpoint import Checkpoint
    from reducers.base import describe

    answering = _answering(job)
    check_reachable([job.corpus, job.store, job.out], job.options)
    checkpoint = Checkpoint.open(job.encode.model, job.encode.revision)
    checkpoint.check_tokenizer()
    answer.check_engine(answering, checkpoint)
    check_selection(answering.answer.select, {"reducer": describe(parse_reducer(job.encode.reducer))}, None)
    if job.cluster.runner == "ray":
        with cluster(job.cluster):  # one Ray for both halves
            return _run(job, answering, meter)
    return _run(job, answering, meter)


def _run(job: CaptionJob, answering: AnswerJob, meter: Meter) -> Report:
    fs, root = open_root(job.out, job.options)
    if fs.isfile(root):  # told now, and not when all is encoded
        raise ConfigError(f"--out must be a directory, {job.out} is a file")
    views, began_s = Views(job.out, job.options), time.time()
    seen = views.names()
    corpus, encoded = encode.encoded(_encoding(job), meter)
    if encoded["stopped"]:
        return {"job": "caption", "encode": encoded, "exit_code": STOPPED}
    store = TokenStore.open(job.store, encoded["fingerprint"], job.options)
    asked = _asked(job, corpus, store)
    answered = answer.answered(answering, store, asked, meter, captions=True)
    own = View(asked=asked, answers=answered["answers_fingerprint"], replaces=seen, began_s=began_s)
    store.refresh()
    rows = views.publish(own, store.payloads(), complete=not answered["stopped"])
    without = asked.num_rows - answered["statuses"].get("ok", 0)
    damaged = "damaged" in answered["statuses"]
    return {
        "job": "caption",
        "captions": f"{job.out.rstrip('/')}/captions.jsonl",
        "videos": len({span_of(name)[0] for name in asked["video_id"].to_pylist()}),
        **({} if job.segments is None else {"segments": asked.num_rows}),
        "captioned": asked.num_rows - without,
        "without_caption": without,
        "rows_in_files": rows.num_rows,
        "encode": encoded,
        "answer": answered,
        "exit_code": exit_code(stopped=answered["stopped"], failed=without > job.max_failed, damaged=damaged),
    }


def _encoding(job: CaptionJob) -> EncodeJob:
    same = ("corpus", "store", "encode", "decode", "cluster", "decoders", "encoders", "gpus_per_encoder", "videos_per_unit")
    kept = {name: getattr(job, name) for name in (*same, "segments", "identity", "retry", "storage_options")}
    return EncodeJob(**kept, max_failed=sys.maxsize)


def _answering(job: CaptionJob) -> AnswerJob:
    config = AnswerConfig(
        model=job.encode.model,
        revision=job.encode.revision,
        prompt=PromptTemplate(style=job.style),
        max_new_tokens=job.max_new_tokens,
        engine=job.engine,
        vllm=job.vllm,
        dtype=job.answer_dtype,
        device=job.encode.device,
        select=SelectConfig(budget=job.budget, coverage=job.coverage),
    )
    same = {name: getattr(job, name) for name in ("store", "out", "cluster", "engines", "gpus_per_engine", "storage_options")}
    unit = max(1, min(job.videos_per_unit, 8))
    return AnswerJob(questions="", answer=config, videos_per_unit=unit, **same)


def _asked(job: CaptionJob, corpus: pa.Table, store: TokenStore) -> pa.Table:
    """Return one question for each video or segment of the corpus, in its order."""
    payloads = store.payloads()
    rows = [
        {
            "question_id": f"{QUESTION_ID}:{name}",
            "video_id": name,
            "question": job.prompt,
            "store_id": name if name in payloads else None,
            "payload_sha256": payloads.get(name),
            "history": None,
            "turn": None,
        }
        for name in corpus["video_id"].to_pylist()
    ]
    return pa.Table.from_pylist(rows, schema=QUESTIONS_ASKED)


def main(args: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    return launch(CaptionJob, run, "framefold caption", args)
