"""`framefold answer` at work: answer and commit what a plan names, and report.

No video is opened. Each entry is read once for all questions about it in a unit.
"""

import logging
import threading
from collections import Counter
from collections.abc import Generator
from contextlib import closing
from typing import Any

import pyarrow as pa

from jobs.commands.answer_plan import AnswerPlan
from jobs.runtime.cluster import check_gpus, cluster, share, source, through, turn
from jobs.runtime.launch import Report, exit_code, stop_on_signal
from jobs.runtime.progress import Progress
from jobs.runtime.telemetry import Meter
from jobs.runtime.timing import timed
from pipeline.answer.answer_store import CommitAnswers, units
from pipeline.answer.stage import Answer
from pipeline.errors import ConfigError

logger = logging.getLogger(__name__)
ANSWER, COMMIT = timed(Answer, "answer"), timed(CommitAnswers, "commit")


def execute(found: AnswerPlan, meter: Meter) -> Report:
    """Answer what is pending, then write answers.jsonl and answers.parquet. Returns the report of the run."""
    progress, stopped = answered(found, meter, "questions", "answer")
    report = _report(found, found.answers.finish(found.asked), progress, stopped)
    return {**report, "answers": f"{found.job.out.rstrip('/')}/answers.jsonl"}


def execute_captions(found: AnswerPlan, meter: Meter) -> Report:
    """Answer what is pending where the answers are captions: answers.jsonl and answers.parquet are not written."""
    progress, stopped = answered(found, meter, "videos or segments", "caption")
    return _report(found, found.answers.statuses(found.asked), progress, stopped)


def answered(found: AnswerPlan, meter: Meter, what: str, verb: str) -> tuple[Progress, bool]:
    """Answer and commit until nothing is pending or a signal comes; returns the progress, and whether a signal came first."""
    found.answers.write_spec(found.spec)
    fingerprint, pending = found.answers.fingerprint, found.pending.num_rows
    logger.info("%d %s, %d to %s", found.asked.num_rows, what, pending, verb)
    progress = Progress(verb, pending)
    meter.found(fingerprint, "questions", {"skipped": found.asked.num_rows - pending}, pending)
    if not pending:
        return progress, False
    with stop_on_signal() as stop, closing(_manifests(found, stop)) as manifests:
        for manifest in manifests:
            ok, every = sum(manifest["ok"].to_pylist()), sum(manifest["questions"].to_pylist())
            progress.add(Counter({"answered": ok, "without answer": every - ok}))
            meter.questions(fingerprint, manifest, progress.total - progress.done)
    return progress, stop.is_set() and progress.done < pending


def _manifests(found: AnswerPlan, stop: threading.Event) -> Generator[pa.Table, None, None]:
    """Yield rows of `answer_store.MANIFEST` as units are committed."""
    return _locally(found, stop) if found.job.cluster.runner == "local" else _on_ray(found, stop)


def _locally(found: AnswerPlan, stop: threading.Event) -> Generator[pa.Table, None, None]:
    job = found.job
    answer = ANSWER(job.answer, job.store, found.store.fingerprint, job.options, cut=found.cut)
    commit = COMMIT(job.out, found.answers.fingerprint, job.options)
    for unit in units(found.pending, job.videos_per_unit):
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


def _on_ray(found: AnswerPlan, stop: threading.Event) -> Generator[pa.Table, None, None]:
    job, pending = found.job, found.pending
    with cluster(job.cluster) as cpus, turn(job.cluster, stop) as waited:
        check_gpus(job.engines * job.gpus_per_engine)
        if waited:  # another job may have answered the same questions meanwhile
            pending = found.answers.pending(pending)
            logger.info("%d of them are left to do", pending.num_rows)
        if stop.is_set() or not pending.num_rows:
            return
        commits = _stages(found, pending, share(cpus, job.engines + 1))
        for manifest in commits.iter_batches(batch_format="pyarrow", batch_size=None, prefetch_batches=0):
            yield manifest
            if stop.is_set():
                return


def _stages(found: AnswerPlan, pending: pa.Table, cpus: float) -> Any:
    """Return the data set of manifests behind engines and the committer. Any: Ray's data sets are untyped here."""
    job, gpus = found.job, found.job.gpus_per_engine
    asked = (job.answer, job.store, found.store.fingerprint, job.options, None, found.cut)
    written = (job.out, found.answers.fingerprint, job.options)
    data = source(unit.combine_chunks() for unit in units(pending, job.videos_per_unit))
    replies = through(data, timed(_Answering, "answer"), asked, workers=job.engines, cpus=cpus, gpus=gpus, batch=None)
    return through(replies, COMMIT, written, workers=1, cpus=cpus / 2, batch=None)


def _report(found: AnswerPlan, statuses: dict[str, int], progress: Progress, stopped: bool) -> Report:
    """Return the state of all answers now, and what this run did."""
    job, store, answers, asked = found.job, found.store, found.answers, found.asked
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
