"""The plan of `framefold caption`: both stages are checked and compared with what is stored; nothing is written."""

import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from jobs.commands import answer_plan, encode_plan
from jobs.commands.answer import AnswerJob
from jobs.commands.answer_plan import AnswerPlan
from jobs.commands.encode import EncodeJob
from jobs.commands.encode_plan import EncodePlan
from jobs.runtime.cluster import check_address, check_cluster
from jobs.runtime.launch import DONE, Report
from jobs.runtime.logs import say_table
from jobs.runtime.plan_text import by_class
from pipeline.answer.answer_store import QUESTIONS_ASKED
from pipeline.answer.caption_runs import Views
from pipeline.answer.expected import expected_prompts, stored_tokens
from pipeline.answer.stage import AnswerConfig
from pipeline.answer.token_selection import SelectConfig, check_selection
from pipeline.corpus.segments import span_of
from pipeline.encode.stage import parse_reducer
from pipeline.errors import ConfigError
from pipeline.models.prompts import PromptTemplate
from pipeline.storage.filesystem import open_root
from pipeline.storage.preflight import check_reachable
from pipeline.store.token_store import TokenStore

if TYPE_CHECKING:
    from jobs.commands.caption import CaptionJob

QUESTION_ID = "caption"


@dataclass(frozen=True, kw_only=True)
class CaptionPlan:
    """Both stages of a job, checked."""

    job: "CaptionJob"
    encode: EncodePlan
    answer: AnswerPlan
    """Its questions are about the entries that the store holds now."""
    seen: frozenset[str]
    """Views that were there before the corpus was listed."""
    began_s: float
    """When the job began, in seconds since 1970."""


def plan(job: "CaptionJob") -> CaptionPlan:
    """Return what a job is going to do. Raises ConfigError for a wrong setting of either stage."""
    answering = checked(job)
    views, began_s = Views(job.out, job.options), time.time()
    seen = views.names()
    encode = encode_plan.plan(encoding_of(job))
    answer = answer_plan.plan_for(answering, encode.store, asked_of(job, encode.corpus, encode.store))
    return CaptionPlan(job=job, encode=encode, answer=answer, seen=seen, began_s=began_s)


def checked(job: "CaptionJob") -> AnswerJob:
    """Return the settings of the second stage. Raises ConfigError where they cannot work, before the corpus is listed."""
    from pipeline.models.checkpoint import Checkpoint
    from reducers.base import describe

    answering = answering_of(job)
    check_reachable([job.corpus, job.store, job.out], job.options)
    checkpoint = Checkpoint.open(job.encode.model, job.encode.revision)
    checkpoint.check_tokenizer()
    answer_plan.check_engine(answering, checkpoint)
    check_selection(answering.answer.select, {"reducer": describe(parse_reducer(job.encode.reducer))}, None)
    if job.cluster.runner == "ray":
        check_address(job.cluster)
    fs, root = open_root(job.out, job.options)
    if fs.isfile(root):
        raise ConfigError(f"--out must be a directory, {job.out} is a file")
    return answering


def encoding_of(job: "CaptionJob") -> EncodeJob:
    """Return the settings of the first stage; how many videos may fail is decided by the captions."""
    same = ("corpus", "store", "encode", "decode", "cluster", "decoders", "encoders", "gpus_per_encoder", "videos_per_unit")
    kept = {name: getattr(job, name) for name in (*same, "segments", "identity", "retry", "storage_options")}
    return EncodeJob(**kept, max_failed=sys.maxsize)


def answering_of(job: "CaptionJob") -> AnswerJob:
    """Return the settings of the second stage. Raises ConfigError for a wrong one."""
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


def asked_of(job: "CaptionJob", corpus: pa.Table, store: TokenStore) -> pa.Table:
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


def preview(found: CaptionPlan) -> Report:
    """Return a plan as a report. Raises ConfigError where the cluster of the job does not answer or has too few GPUs."""
    job = found.job
    check_cluster(job.cluster, 0)
    encode = encode_plan.preview(found.encode)
    if found.encode.has_work or found.answer.pending.num_rows:
        check_cluster(job.cluster, job.engines * job.gpus_per_engine)
    asked = found.answer.asked
    is_missing = pc.is_in(asked["video_id"], found.encode.missing["video_id"].combine_chunks())
    is_pending = pc.is_in(asked["question_id"], found.answer.pending["question_id"].combine_chunks())
    has_entry = pc.and_(asked["store_id"].is_valid(), pc.invert(is_missing))
    now, later = asked.filter(pc.and_(is_pending, has_entry)), found.encode.missing.num_rows
    return {
        "job": "caption",
        "dry_run": True,
        "captions": f"{job.out.rstrip('/')}/captions.jsonl",
        "answers_fingerprint": found.answer.answers.fingerprint,
        "videos": len({span_of(name)[0] for name in asked["video_id"].to_pylist()}) + encode["unmeasured"],
        **({} if job.segments is None else {"segments": asked.num_rows}),
        "captioned": asked.filter(pc.and_(pc.invert(is_pending), pc.invert(is_missing))).num_rows,
        "to_caption": now.num_rows + later,
        "to_caption_after_encoding": later,
        "without_caption": encode["failed"],
        "expected": _expected(found, encode, now, later),
        "encode": encode,
        "exit_code": DONE,
    }


def _expected(found: CaptionPlan, encode: Report, now: pa.Table, later: int) -> Report:
    """Return tokens per prompt and in total, of captions of stored entries and of those that are encoded first."""
    entry, config = encode["expected"], found.answer.job.answer
    stored = [*stored_tokens(found.encode.store, now["store_id"].to_pylist()), *([entry["tokens_per_video"]] * later)]
    questions = [found.job.prompt] * len(stored)
    return expected_prompts(config, found.answer.checkpoint, questions, stored, entry["basis"] if later else "exact")


def show(report: Report) -> Report:
    """Print the report of `preview` as two tables on stderr, one for each stage, and return it."""
    encode_plan.show(report["encode"])
    expected, later = report["expected"], report["to_caption_after_encoding"]
    sure = expected["basis"].replace("_", " ")
    rows = [
        ("captions", report["captions"]),
        ("captioned", str(report["captioned"])),
        ("to caption", f"{report['to_caption']}, {later} of them after they are encoded"),
        ("without caption", by_class(report["encode"]["failed_by_class"])),
        ("per prompt", f"{expected['visual_tokens']:g} visual tokens ({sure}), {expected['text_tokens']:g} of text"),
        ("in total", f"{expected['tokens']} tokens"),
    ]
    say_table("caption, dry run: nothing is written", rows, **report)
    return report
