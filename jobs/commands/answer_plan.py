"""The plan of `framefold answer`: settings are checked, questions are compared with answers and store, nothing is written."""

import logging
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from jobs.runtime.cluster import check_address, check_cluster, placed
from jobs.runtime.launch import DONE, Report
from jobs.runtime.logs import say_table
from jobs.runtime.plan_text import by_class
from pipeline.answer.answer_store import AnswerStore
from pipeline.answer.expected import expected_prompts, stored_tokens
from pipeline.answer.stage import AnswerConfig, answer_spec, check_tower, check_turns, corpus_cut, joint_space
from pipeline.answer.token_selection import check_selection
from pipeline.errors import ConfigError
from pipeline.questions.aliases import read_aliases
from pipeline.questions.datasets import join_videos, read_questions, with_history
from pipeline.storage.filesystem import open_root
from pipeline.storage.preflight import check_reachable
from pipeline.store.token_store import TokenStore

if TYPE_CHECKING:
    from jobs.commands.answer import AnswerJob
    from pipeline.models.checkpoint import Checkpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AnswerPlan:
    """The settings of a job, checked, and which of its questions are to be answered."""

    job: "AnswerJob"
    """Device and dtype are decided."""
    checkpoint: "Checkpoint"
    store: TokenStore
    spec: dict[str, Any]
    """All that the answers depend on."""
    answers: AnswerStore
    """Its spec need not be stored yet."""
    cut: float | None
    """Gain at which `--corpus-budget` cuts every video, None without it."""
    asked: pa.Table
    """Rows of `answer_store.QUESTIONS_ASKED`: all questions."""
    pending: pa.Table
    """Rows of `answer_store.QUESTIONS_ASKED`: those without a final answer, about missing videos too."""


def plan(job: "AnswerJob") -> AnswerPlan:
    """Return what a job is going to do. Raises ConfigError for a wrong setting."""
    check_reachable([job.store, job.questions, job.out, job.aliases], job.options)
    store = TokenStore.open(job.store, job.fingerprint, job.options, job.reducer)
    return plan_for(job, store, asked_of(job, store))


def plan_for(job: "AnswerJob", store: TokenStore, asked: pa.Table) -> AnswerPlan:
    """Return the same for given questions, rows of `answer_store.QUESTIONS_ASKED`; the job's own file is not read."""
    checkpoint = checked(job, store)
    config = check_engine(job, checkpoint)
    check_questions(job, store, asked, checkpoint)
    cut = corpus_cut(job.answer, store, [name for name in set(asked["store_id"].to_pylist()) if name is not None])
    spec = answer_spec(config, checkpoint, store.fingerprint, cut)
    answers = AnswerStore.preview(job.out, spec, job.options)
    pending = answers.pending(asked)
    if pending.num_rows:
        check_address(job.cluster)
    return AnswerPlan(
        job=replace(job, answer=config),
        checkpoint=checkpoint,
        store=store,
        spec=spec,
        answers=answers,
        cut=cut,
        asked=asked,
        pending=pending,
    )


def asking(found: AnswerPlan, asked: pa.Table) -> AnswerPlan:
    """Return a plan with other questions, rows of `answer_store.QUESTIONS_ASKED`."""
    return replace(found, asked=asked, pending=found.answers.pending(asked))


def checked(job: "AnswerJob", store: TokenStore) -> "Checkpoint":
    """Return the checkpoint of a job. Raises ConfigError where folders, model and store do not fit together."""
    from pipeline.models.checkpoint import Checkpoint

    _check_out(job, store)
    checkpoint = Checkpoint.open(job.answer.model, job.answer.revision)
    check_tower(store.spec, checkpoint)
    checkpoint.check_tokenizer()
    return checkpoint


def check_questions(job: "AnswerJob", store: TokenStore, asked: pa.Table, checkpoint: "Checkpoint") -> None:
    """Raise ConfigError where these questions cannot be asked that way, or entries cannot be shown that way."""
    if asked["turn"].null_count < asked.num_rows:
        check_turns(job.answer)
    check_selection(job.answer.select, store.spec, joint_space(job.answer, checkpoint))


def _check_out(job: "AnswerJob", store: TokenStore) -> None:
    """Raise ConfigError where answers would lie among the store's files: both keep specs, and neither knows the other's."""
    if open_root(job.out, job.options)[1] == store.root:
        raise ConfigError(f"--out must differ from --store (a subdirectory of it is fine), got {job.out} for both")


def asked_of(job: "AnswerJob", store: TokenStore) -> pa.Table:
    """Return the questions of a job with the id and the payload digest of their video's entry, null where there is none."""
    payloads = store.payloads()
    questions = read_questions(job.questions, job.dataset, storage_options=job.options)
    aliases = read_aliases(job.aliases, job.options) if job.aliases else None
    joined = join_videos(questions, payloads, aliases)
    if payloads and joined["store_id"].null_count == joined.num_rows:
        named, held = joined["video_id"][0].as_py(), min(payloads)
        logger.warning("no question is about a video of this store: %s against %s; see --aliases and --dataset", named, held)
    digests = [payloads.get(store_id) for store_id in joined["store_id"].to_pylist()]
    return with_history(joined).append_column("payload_sha256", pa.array(digests, pa.string()))


def check_engine(job: "AnswerJob", checkpoint: "Checkpoint") -> AnswerConfig:
    """Return the answer config with device and dtype decided, for where the engines will run.

    Raises ConfigError where the engine is not installed there, or cannot run the checkpoint.
    """
    config = placed(job.answer, job.cluster, job.gpus_per_engine, "--gpus-per-engine")
    if config.engine == "vllm":
        from pipeline.engines.vllm_engine import check_vllm

        check_vllm(checkpoint, config.device, config.vllm)
    return config


def preview(found: AnswerPlan) -> Report:
    """Return a plan as a report. Raises ConfigError where the cluster of the job does not answer or has too few GPUs."""
    job, store = found.job, found.store
    if found.pending.num_rows:
        check_cluster(job.cluster, job.engines * job.gpus_per_engine)
    without = found.pending.filter(found.pending["store_id"].is_null())
    todo = found.pending.filter(found.pending["store_id"].is_valid())
    failed = _failed_by_class(found, without)
    stored = stored_tokens(store, todo["store_id"].to_pylist())
    return {
        "job": "answer",
        "dry_run": True,
        "store": job.store,
        "fingerprint": store.fingerprint,
        "answers_fingerprint": found.answers.fingerprint,
        "questions": found.asked.num_rows,
        "answered": found.asked.num_rows - found.pending.num_rows,
        "statuses": found.answers.statuses(found.asked),
        "to_answer": todo.num_rows,
        "videos_to_read": len(set(todo["store_id"].to_pylist())),
        "not_answerable": without.num_rows,
        "not_in_store": without.num_rows - sum(failed.values()),
        "failed_by_class": failed,
        "missing_videos": len(set(without["video_id"].to_pylist())),
        "expected": expected_prompts(job.answer, found.checkpoint, todo["question"].to_pylist(), stored),
        "exit_code": DONE,
    }


def _failed_by_class(found: AnswerPlan, without: pa.Table) -> dict[str, int]:
    """Return how many questions are about a video that the index lists as failed, by class."""
    failures = found.store.failures()
    classes = dict(zip(failures["video_id"].to_pylist(), failures["error_class"].to_pylist(), strict=True))
    aliases = read_aliases(found.job.aliases, found.job.options) if found.job.aliases else None
    joined = join_videos(without.drop_columns(["store_id"]), classes, aliases)
    return dict(sorted(Counter(classes[name] for name in joined["store_id"].to_pylist() if name is not None).items()))


def show(report: Report) -> Report:
    """Print the report of `preview` as a table on stderr and return it."""
    expected, failed = report["expected"], report["failed_by_class"]
    sure = expected["basis"].replace("_", " ")
    why = f"{report['not_in_store']} about videos that are not in the store, {by_class(failed)} about videos that failed"
    rows = [
        ("store", f"{report['store']}, fingerprint {report['fingerprint'][:12]}"),
        ("questions", str(report["questions"])),
        ("answered", str(report["answered"])),
        ("to answer", f"{report['to_answer']}, {report['videos_to_read']} videos are read"),
        ("cannot be answered", f"{report['not_answerable']}: {why}" if report["not_answerable"] else "0"),
        ("per prompt", f"{expected['visual_tokens']:g} visual tokens ({sure}), {expected['text_tokens']:g} of text"),
        ("in total", f"{expected['tokens']} tokens"),
    ]
    say_table("answer, dry run: nothing is written", rows, **report)
    return report
