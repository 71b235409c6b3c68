"""`framefold caption` at work: encode what is missing, caption what has no caption, write the files."""

from contextlib import ExitStack
from typing import Any

from jobs.commands import answer_plan, answer_run, encode_run
from jobs.commands.caption_plan import CaptionPlan, asked_of
from jobs.runtime.cluster import cluster
from jobs.runtime.launch import STOPPED, Report, exit_code
from jobs.runtime.telemetry import Meter
from pipeline.answer.caption_runs import View, Views
from pipeline.corpus.segments import span_of


def execute(found: CaptionPlan, meter: Meter) -> Report:
    """Carry out a plan. Returns the report of the run, with the reports of both stages."""
    with ExitStack() as stack:
        if found.job.cluster.runner == "ray":
            stack.enter_context(cluster(found.job.cluster))  # one Ray for both stages
        corpus, encoded = encode_run.execute(found.encode, meter)
        if encoded["stopped"]:
            return {"job": "caption", "encode": encoded, "exit_code": STOPPED}
        answering = answer_plan.asking(found.answer, asked_of(found.job, corpus, found.encode.store))
        answered = answer_run.execute_captions(answering, meter)
        rows = published(found, answering, stopped=answered["stopped"])
    return _report(found, answering, {"rows_in_files": rows, "encode": encoded, "answer": answered})


def published(found: CaptionPlan, answering: answer_plan.AnswerPlan, *, stopped: bool) -> int:
    """Write the files of captions; returns how many rows they have."""
    job, store, answers = found.job, found.encode.store, answering.answers.fingerprint
    own = View(asked=answering.asked, answers=answers, replaces=found.seen, began_s=found.began_s)
    store.refresh()
    rows = Views(job.out, job.options).publish(own, store.payloads(), complete=not stopped)
    return int(rows.num_rows)


def _report(found: CaptionPlan, answering: answer_plan.AnswerPlan, parts: dict[str, Any]) -> Report:
    job, asked, answered = found.job, answering.asked, parts["answer"]
    without = asked.num_rows - answered["statuses"].get("ok", 0)
    damaged = "damaged" in answered["statuses"]
    return {
        "job": "caption",
        "captions": f"{job.out.rstrip('/')}/captions.jsonl",
        "videos": len({span_of(name)[0] for name in asked["video_id"].to_pylist()}),
        **({} if job.segments is None else {"segments": asked.num_rows}),
        "captioned": asked.num_rows - without,
        "without_caption": without,
        **parts,
        "exit_code": exit_code(stopped=answered["stopped"], failed=without > job.max_failed, damaged=damaged),
    }
