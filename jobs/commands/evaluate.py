"""Score predictions against a data set: offline and deterministically, and where asked by a judge beside that.

Exact match is the string equality of ActivityNet-QA's own script; normalised match stands beside it under its own name.
Missing predictions are wrong, and coverage says how many there are. WUPS is not offered: it needs the WordNet corpus.
A judge (`--judge-url`, `--judge-model`) adds its own part to the report and changes no other number of it.
"""

import logging
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import tyro

from jobs.runtime.launch import exit_code, json_object, launch, stop_on_signal, storage_options
from jobs.runtime.progress import Progress
from pipeline.errors import ConfigError
from pipeline.evaluate import metrics
from pipeline.evaluate.judge import JudgeConfig, judge
from pipeline.evaluate.judge_client import EndpointConfig
from pipeline.evaluate.judge_scores import judged_rows, reference_text, summary
from pipeline.evaluate.judge_store import ReplyStore
from pipeline.questions.datasets import dataset_of, read_questions
from pipeline.storage.preflight import check_reachable
from pipeline.tables.json_layouts import by_id
from pipeline.tables.tabular import read_records
from pipeline.tables.values import Record, required_texts, texts

logger = logging.getLogger(__name__)

ID_COLUMNS = ("question_id", "id")
TEXT_COLUMNS = ("prediction", "pred", "answer")
"""In this order: where a file has both, `answer` is the reference (Video-ChatGPT's inference script writes it so)."""

SHOWN_IDS = 10
"""How many ids of a kind the report names; it always counts them all."""


@dataclass(frozen=True, kw_only=True)
class EvaluateJob:
    """Score a file of predictions against the answers of a data set."""

    predictions: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PREDICTIONS")]
    """Parquet, JSONL, CSV or JSON list with question_id and prediction (or answer); any fsspec URL."""
    questions: str
    """The data set's question file; any fsspec URL."""
    answers: str | None = None
    """The data set's answer file; default: answers in the question file, or the *_a.json beside a *_q.json."""
    dataset: Literal["auto", "activitynet-qa", "msvd-qa", "msrvtt-qa", "tgif-qa", "plain"] = "auto"
    """Sets question types and the data set's own accuracy lines; auto tells it by columns and video names."""
    against: str | None = None
    """A second file of predictions: report the paired difference, with its interval."""
    duplicates: Literal["error", "first", "last"] = "error"
    """What to do with two different predictions for one question; equal ones are always taken as one."""
    free_published: bool = False
    """Also report ActivityNet-QA's "Free" by the arithmetic of its released script, which divides by a wrong number."""
    judge_url: str | None = None
    """Let a model judge each prediction too: any OpenAI-compatible endpoint, such as http://host:8000/v1."""
    judge_model: str | None = None
    """The judge's exact model name; a floating alias judges otherwise tomorrow."""
    judge_key_env: str | None = None
    """Name of the environment variable that holds the endpoint's API key."""
    judge_out: str | None = None
    """Folder for raw replies and judged.jsonl; any fsspec URL; default: the predictions' path with .judge at its end."""
    judge_concurrency: int = 8
    """Requests in flight at once."""
    judge_tries: int = 5
    """Requests for one question at most, with growing pauses between them."""
    judge_timeout_s: float = 60.0
    """Longest wait for one request, in seconds."""
    judge_request: str = "{}"
    """JSON object: more fields of the request; null removes one, as {"temperature": null} for models that refuse it."""
    storage_options: str = "{}"
    """JSON object for fsspec, used for every file."""

    def __post_init__(self) -> None:
        if (self.judge_url is None) != (self.judge_model is None):
            raise ConfigError("a judge needs both --judge-url and --judge-model")

    def judge(self) -> JudgeConfig | None:
        """Return the judge, with its key read from the environment; None where there is none."""
        if self.judge_url is None or self.judge_model is None:
            return None
        endpoint = EndpointConfig(
            url=self.judge_url,
            key=_key(self.judge_key_env),
            tries=self.judge_tries,
            timeout_s=self.judge_timeout_s,
        )
        request = json_object(self.judge_request, "--judge-request")
        return JudgeConfig(model=self.judge_model, endpoint=endpoint, concurrency=self.judge_concurrency, request=request)

    @property
    def options(self) -> dict[str, Any]:
        """Return the storage options as a mapping."""
        return storage_options(self.storage_options)


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Predictions by question id; None where a question was asked and not answered."""

    texts: Mapping[str, str | None]
    statuses: Mapping[str, int]
    duplicates: int


def run(job: EvaluateJob) -> dict[str, Any]:
    """Return the report, ready for JSON, unrounded. Raises ConfigError where files do not fit together."""
    config = job.judge()
    check_reachable([job.predictions, job.questions, job.answers, job.against, job.judge_out], job.options)
    table = read_questions(job.questions, job.dataset, job.answers, job.options)
    asked = _with_reference(table, job.questions)
    ours = read_predictions(job.predictions, job.duplicates, job.options)
    report = score(asked, ours, dataset_of(table), job)
    report["without_reference"] = table.num_rows - asked.num_rows
    if job.against is not None:
        theirs = read_predictions(job.against, job.duplicates, job.options)
        report["against"] = {"predictions": job.against, **compare(asked, ours, theirs)}
    if config is not None:
        report |= judge_all(asked, ours, config, job)
    return report


def judge_all(asked: pa.Table, ours: Predictions, config: JudgeConfig, job: EvaluateJob) -> dict[str, Any]:
    """Let the judge read every prediction, keep its replies and write judged.jsonl. Returns `judge` and `exit_code`.

    The code is 1 where questions stay without a reply: run again, and only these are asked.
    """
    said, answers, _ = _columns(asked, ours)
    rows = zip(asked["question"].to_pylist(), map(reference_text, answers), said, strict=True)
    cases = [(question, answer, text) for question, answer, text in rows if text is not None]
    store = ReplyStore(job.judge_out or f"{job.predictions}.judge", config.spec(), job.options)
    progress = Progress("judge", len(set(cases)))
    with stop_on_signal() as stop:
        judged = judge(cases, config, store, stop, progress.add)
        stopped = stop.is_set() and not judged.gave_up
    judgements = judged_rows(asked, said, judged)
    report = {
        "model": config.model,
        "fingerprint": store.fingerprint,
        "judgements": store.write_judged(judgements),
        **summary(judgements, SHOWN_IDS),
        "this_run": {"requests": judged.requests, "reused": judged.reused, "gave_up": judged.gave_up, "stopped": stopped},
    }
    if unsettled := report["unparsed"]["count"] + report["failed"]["count"]:
        logger.warning("%d of %d questions are not judged; they are in no judge's score", unsettled, len(judgements))
    return {"judge": report, "exit_code": exit_code(stopped=stopped, failed=report["failed"]["count"] > 0)}


def _key(variable: str | None) -> str | None:
    """Return the API key. Raises ConfigError where the variable is not set, so that no run goes out without its key."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"--judge-key-env names {variable}, which is not set or empty")
    return key


def score(asked: pa.Table, ours: Predictions, dataset: str, job: EvaluateJob) -> dict[str, Any]:
    """Score predictions on the questions of a table, all of which have an answer.

    Where a question has several right answers, any of them is right, in the official arithmetic too: a question counts once.
    `several_answers` is in the report then, with the exact match against the first answer alone, as a script that knows one
    answer per question computes it.
    """
    said, answers, types = _columns(asked, ours)
    video_Q = metrics.video_codes(asked["video_id"].to_pylist())
    answered_Q = np.array([text is not None for text in said], dtype=bool)
    exact_Q, normal_Q = metrics.exact_matches(said, answers), metrics.normalised_matches(said, answers)
    unknown = sorted(ours.texts.keys() - set(asked["question_id"].to_pylist()))
    missing = asked.filter(pa.array(~answered_Q))["question_id"].to_pylist()
    report: dict[str, Any] = {
        "dataset": dataset,
        "predictions": job.predictions,
        "questions": asked.num_rows,
        "videos": int(video_Q.max()) + 1,
        "answered": int(answered_Q.sum()),
        "missing": {"count": len(missing), "first": missing[:SHOWN_IDS]},
        "coverage": float(answered_Q.mean()),
        "unknown_ids": {"count": len(unknown), "first": unknown[:SHOWN_IDS]},
        "duplicates": {"count": ours.duplicates, "policy": job.duplicates},
        "statuses": dict(ours.statuses),
        "exact": metrics.summary(exact_Q, answered_Q, video_Q),
        "normalised": metrics.summary(normal_Q, answered_Q, video_Q),
        "per_type": {
            name: {"exact": asdict(share), "normalised": asdict(metrics.by_type(normal_Q, types, video_Q)[name])}
            for name, share in metrics.by_type(exact_Q, types, video_Q).items()
        },
    }
    if several := sum(isinstance(answer, list) for answer in answers):
        first_Q = metrics.exact_matches(said, asked["answer"].to_pylist())
        report["several_answers"] = {"questions": several, "exact_first_only": metrics.summary(first_Q, answered_Q, video_Q)}
    if dataset == "activitynet-qa":
        report["official"] = metrics.activitynet_accuracies(exact_Q, types)
        if job.free_published:
            report["official"]["free_published"] = metrics.free_published(exact_Q, types)
    return report


def compare(asked: pa.Table, ours: Predictions, theirs: Predictions) -> dict[str, Any]:
    """Return the paired difference (ours minus theirs) of both match rules."""
    video_Q = metrics.video_codes(asked["video_id"].to_pylist())
    rules = {"exact": metrics.exact_matches, "normalised": metrics.normalised_matches}
    differences = {}
    for name, rule in rules.items():
        (our_texts, answers, _), (their_texts, _, _) = _columns(asked, ours), _columns(asked, theirs)
        paired = metrics.paired_difference(rule(our_texts, answers), rule(their_texts, answers), video_Q)
        differences[name] = None if paired is None else asdict(paired)
    return differences


def read_predictions(path: str, duplicates: str = "error", storage_options: Mapping[str, Any] | None = None) -> Predictions:
    """Read our answer files, or a data set's own layout, a list of question_id and answer or an object of both.

    A row whose `status` is not ok has no prediction, whatever its text. Raises ConfigError for a file without ids or
    texts, and for two different predictions of one question unless `duplicates` says which to take.
    """
    records = by_id(read_records(path, storage_options), "prediction")
    key, column = _first(records, ID_COLUMNS, path), _first(records, TEXT_COLUMNS, path)
    ids, statuses = required_texts(records, key, path, blank=False), texts(records, "status", path)
    found: dict[str, str | None] = {}
    repeated = 0
    for question_id, status, said in zip(map(str.strip, ids), statuses, texts(records, column, path), strict=True):
        text = said if status in (None, "ok") else None
        if question_id in found:
            repeated += 1
            if found[question_id] != text and duplicates == "error":
                raise ConfigError(
                    f"{path}: question {question_id!r} has two different predictions; pass --duplicates first or last"
                )
        if question_id not in found or duplicates == "last":
            found[question_id] = text
    counts = Counter(status for status in statuses if status is not None)
    return Predictions(texts=found, statuses=dict(sorted(counts.items())), duplicates=repeated)


def _first(records: list[Record], names: tuple[str, ...], path: str) -> str:
    columns = set().union(*records)
    found = next((name for name in names if name in columns), None)
    if found is None:
        raise ConfigError(f"{path}: expected a column {' or '.join(names)}, got {sorted(columns)}")
    return found


def _with_reference(table: pa.Table, path: str) -> pa.Table:
    asked = table.filter(table["answer"].is_valid())
    if asked.num_rows == 0:
        raise ConfigError(f"{path}: no question has an answer to score against; pass --answers")
    return asked


def _columns(asked: pa.Table, predictions: Predictions) -> tuple[list[str | None], list[metrics.Reference], list[str | None]]:
    """Return predictions, references and types in the order of the table. Raises ConfigError if no id is known."""
    ids = asked["question_id"].to_pylist()
    if predictions.texts.keys().isdisjoint(ids):
        raise ConfigError(
            f"none of the {len(predictions.texts)} predicted question ids is in the question file; "
            f"got ids such as {next(iter(predictions.texts))!r}, expected such as {ids[0]!r}"
        )
    return [predictions.texts.get(i) for i in ids], metrics.references(asked), asked["type"].to_pylist()


def main(args: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    return launch(EvaluateJob, run, "framefold evaluate", args)


if __name__ == "__main__":
    sys.exit(main())
