"""Answer questions from the token store: `framefold answer`, or `ray job submit -- python -m jobs.answer`.

No video is opened. Questions are joined to the index on the driver, by video and question id; each video's tokens are read
once for all its questions.
"""

import logging
import threading
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pyarrow as pa
import tyro

from jobs.runtime.cluster import ClusterConfig, check_gpus, check_share, cluster, placed, share, source, through, turn
from jobs.runtime.launch import Report, exit_code, launch, stop_on_signal, storage_options
from jobs.runtime.progress import Progress
from jobs.runtime.telemetry import Meter, metered
from jobs.runtime.timing import timed
from pipeline.answer.answer_store import AnswerStore, CommitAnswers, units
from pipeline.answer.stage import Answer, AnswerConfig, answer_spec, check_tower, check_turns, corpus_cut, joint_space
from pipeline.answer.token_selection import check_selection
from pipeline.errors import ConfigError, check_at_least_one
from pipeline.questions.aliases import read_aliases
from pipeline.questions.datasets import join_videos, read_questions, with_history
from pipeline.storage.filesystem import open_root
from pipeline.storage.preflight import check_reachable
from pipeline.store.token_store import TokenStore

if TYPE_CHECKING:
    from pipeline.models.checkpoint import Checkpoint

logger = logging.getLogger(__name__)
ANSWER, COMMIT = timed(Answer, "answer"), timed(CommitAnswers, "commit")


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
    """Answer what is pending, then write every question once, in the order of its file."""
    return metered("answer", job.metrics_file, job.cluster.runner, lambda meter: _run(job, meter))


def _run(job: AnswerJob, meter: Meter) -> Report:
    check_reachable([job.store, job.questions, job.out, job.aliases], job.options)
    store = TokenStore.open(job.store, job.fingerprint, job.options)
    return answered(job, store, _asked(job, store), meter)


def answered(job: AnswerJob, store: TokenStore, asked: pa.Table, meter: Meter, *, captions: bool = False) -> Report:
    """Answer the questions of a table, columns of `answers.QUESTIONS_ASKED`; the job's own file is not looked at.

    `captions`: whether the answers are captions; answers.jsonl and answers.parquet are not written then.
    """
    from pipeline.models.checkpoint import Checkpoint

    _check_out(job, store)
    checkpoint = Checkpoint.open(job.answer.model, job.answer.revision)
    check_tower(store.spec, checkpoint)
    checkpoint.check_tokenizer()
    config = check_engine(job, checkpoint)
    if asked["turn"].null_count < asked.num_rows:
        check_turns(job.answer)
    check_selection(job.answer.select, store.spec, joint_space(job.answer, checkpoint))
    cut = corpus_cut(job.answer, store, [name for name in set(asked["store_id"].to_pylist()) if name is not None])
    spec = answer_spec(config, checkpoint, store.fingerprint, cut)
    answers = AnswerStore.create(job.out, spec, job.options)
    pending = answers.pending(asked)
    what, verb = ("videos or segments", "caption") if captions else ("questions", "answer")
    logger.info("%d %s, %d to %s", asked.num_rows, what, pending.num_rows, verb)
    progress = Progress(verb, pending.num_rows)
    meter.found(answers.fingerprint, "questions", {"skipped": asked.num_rows - pending.num_rows}, pending.num_rows)
    stopped = False
    if pending.num_rows:
        with stop_on_signal() as stop:
            runner = _locally if job.cluster.runner == "local" else _on_ray
            with closing(runner(replace(job, answer=config), pending, store, answers, cut, stop)) as manifests:
                for manifest in manifests:
                    ok, every = sum(manifest["ok"].to_pylist()), sum(manifest["questions"].to_pylist())
                    progress.add(Counter({"answered": ok, "without answer": every - ok}))
                    meter.questions(answers.fingerprint, manifest, progress.total - progress.done)
            stopped = stop.is_set() and progress.done < pending.num_rows
    statuses = answers.statuses(asked) if captions else answers.finish(asked)
    report = _report(job, store, answers, asked, statuses, progress, stopped)
    return report if captions else {**report, "answers": f"{job.out.rstrip('/')}/answers.jsonl"}


def _check_out(job: AnswerJob, store: TokenStore) -> None:
    """Raise ConfigError where answers would lie among the store's files: both keep specs, and neither knows the other's."""
    if open_root(job.out, job.options)[1] == store.root:
        raise ConfigError(f"--out must differ from --store (a subdirectory of it is fine), got {job.out} for both")


def _asked(job: AnswerJob, store: TokenStore) -> pa.Table:
    """Return the questions with the id and the payload digest of their video's entry, null where there is none."""
    payloads = store.payloads()
    questions = read_questions(job.questions, job.dataset, storage_options=job.options)
    aliases = read_aliases(job.aliases, job.options) if job.aliases else None
    joined = join_videos(questions, payloads, aliases)
    if payloads and joined["store_id"].null_count == joined.num_rows:
        named, held = joined["video_id"][0].as_py(), min(payloads)
        logger.warning("no question is about a video of this store: %s against %s; see --aliases and --dataset", named, held)
    digests = [payloads.get(store_id) for store_id in joined["store_id"].to_pylist()]
    return with_history(joined).append_column("payload_sha256", pa.array(digests, pa.string()))


def check_engine(job: AnswerJob, checkpoint: "Checkpoint") -> AnswerConfig:
    """Return the answer config with device and dtype decided, for where the engines will run.

    Raises ConfigError where the engine is not installed there, or cannot run the checkpoint.
    """
    config = placed(job.answer, job.cluster, job.gpus_per_engine, "--gpus-per-engine")
    if config.engine == "vllm":
        from pipeline.engines.vllm_engine import check_vllm

        check_vllm(checkpoint, config.device, config.vllm)
    return config


def _locally(
    job: AnswerJob, pending: pa.Table, store: TokenStore, answers: AnswerStore, cut: float | None, stop: threading.Event
) -> Generator[pa.Table, None, None]:
    answer = ANSWER(job.answer, job.store, store.fingerprint, job.options, cut=cut)
    commit = COMMIT(job.out, answers.fingerprint, job.options)
    for unit in units(pending, job.videos_per_unit):
        if stop.is_set():
            return
        yield commit(answer(unit))


class _Answering:
    """`Answer` in a Ray actor. What its start refuses is raised by the first unit, which ends the job with one sentence.

    Of an actor that dies while it starts, the driver learns that it died and not of which error.
    """

    def __init__(self, *arguments: Any) -> None:
        self.refused: str | None = None
        try:
            self.stage = Answer(*arguments)
        except ConfigError as error:
            self.refused = str(error)

    def __call__(self, unit: pa.Table) -> pa.Table:
        """Return the unit with predictions. Raises ConfigError where the stage could not be built."""
        if self.refused is not None:
            raise ConfigError(self.refused)
        return self.stage(unit)


def _on_ray(
    job: AnswerJob, pending: pa.Table, store: TokenStore, answers: AnswerStore, cut: float | None, stop: threading.Event
) -> Generator[pa.Table, None, None]:
    with cluster(job.cluster) as cpus, turn(job.cluster, stop) as waited:
        check_gpus(job.engines * job.gpus_per_engine)
        if waited:  # perhaps for the same job
            pending = answers.pending(pending)
            logger.info("%d of them are left to do", pending.num_rows)
        if stop.is_set() or not pending.num_rows:
            return
        each = share(cpus, job.engines + 1)
        data = source(unit.combine_chunks() for unit in units(pending, job.videos_per_unit))
        asked = (job.answer, job.store, store.fingerprint, job.options, None, cut)
        gpus = job.gpus_per_engine
        replies = through(data, timed(_Answering, "answer"), asked, workers=job.engines, cpus=each, gpus=gpus, batch=None)
        written = (job.out, answers.fingerprint, job.options)
        commits = through(replies, COMMIT, written, workers=1, cpus=each / 2, batch=None)
        for manifest in commits.iter_batches(batch_format="pyarrow", batch_size=None, prefetch_batches=0):
            yield manifest
            if stop.is_set():
                return


def _report(
    job: AnswerJob,
    store: TokenStore,
    answers: AnswerStore,
    asked: pa.Table,
    statuses: dict[str, int],
    progress: Progress,
    stopped: bool,
) -> Report:
    unanswered = asked.num_rows - statuses.get("ok", 0)
    too_many = job.max_unanswered is not None and unanswered > job.max_unanswered
    return {
        "job": "answer",
        "store": job.store,
        "fingerprint": store.fingerprint,
        "answers_fingerprint": answers.fingerprint,
        "questions": asked.num_rows,
        "statuses": statuses,
        "missing_videos": len(set(asked.filter(asked["store_id"].is_null())["video_id"].to_pylist())),
        "this_run": progress.report(),
        "answers_per_s": round(progress.per_s, 3),
        "stopped": stopped,
        "exit_code": exit_code(stopped=stopped, failed=too_many, damaged="damaged" in statuses),
    }


def main(args: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    return launch(AnswerJob, run, "framefold answer", args)
