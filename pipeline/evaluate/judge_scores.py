"""From verdicts to numbers: accuracy, mean score, and everything that could not be judged."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.evaluate import metrics
from pipeline.evaluate.judge import Judged, verdict_of
from pipeline.evaluate.judge_client import reply_model, reply_text
from pipeline.evaluate.judge_store import Case

Row = dict[str, Any]
"""question_id, video_id, type, question, answer, prediction, status, correct, score, reply, model; Any, as it becomes JSON."""


def judged_rows(asked: pa.Table, predictions: Sequence[str | None], judged: Judged) -> list[Row]:
    """Return one row per question, in the order of the table.

    status: `ok`, `missing` (no prediction: wrong, score 0), `unparsed` (a reply without a verdict) or `failed` (no reply).
    Of the last two, correct and score are None.
    """
    rows = []
    for question, answer, prediction in zip(asked.to_pylist(), metrics.references(asked), predictions, strict=True):
        row = {**question, "prediction": prediction}
        rows.append({**row, **_outcome((question["question"], reference_text(answer), prediction), judged)})
    return rows


def reference_text(answer: metrics.Reference) -> str:
    """Return the reference as a judge sees it; several right answers as one text with `or` between them."""
    return " or ".join(answer) if isinstance(answer, list) else answer


def _outcome(case: tuple[str, str, str | None], judged: Judged) -> Row:
    question, answer, prediction = case
    if prediction is None:
        return {"status": "missing", "correct": False, "score": 0, "reply": None, "model": None}
    known: Case = (question, answer, prediction)
    reply = judged.replies.get(known)
    if reply is None:
        fault = judged.failed.get(known)
        return {"status": "failed", "correct": None, "score": None, "reply": None, "model": None, "fault": fault}
    found, body = verdict_of(reply), reply["bodies"][-1]
    said = {"reply": reply_text(body), "model": reply_model(body)}
    if found is None:
        return {"status": "unparsed", "correct": None, "score": None, **said}
    return {"status": "ok", "correct": found.correct, "score": found.score, **said}


def summary(rows: Sequence[Row], shown: int) -> dict[str, Any]:
    """Return the scores over all questions that are judged or missing, and the counts of the others.

    `judged_only` leaves the missing ones out, as the published script does. `if_unjudged_wrong` has every unparsed and
    failed question as wrong with score 0. At most `shown` ids of a kind are named.
    """
    scored = [row for row in rows if row["correct"] is not None]
    models = Counter(row["model"] for row in rows if row["model"] is not None)
    return {
        **_scores(scored),
        "judged_only": _scores([row for row in scored if row["status"] == "ok"]),
        "if_unjudged_wrong": _scores([{**row, "correct": bool(row["correct"]), "score": row["score"] or 0} for row in rows]),
        "per_type": {name: _scores([row for row in scored if row["type"] == name]) for name in _types(scored)},
        "judged": sum(row["status"] == "ok" for row in rows),
        **{status: _named(rows, status, shown) for status in ("missing", "unparsed", "failed")},
        "faults": dict(sorted(Counter(row["fault"] for row in rows if row["status"] == "failed").items())),
        "models": dict(sorted(models.items())),
    }


def _scores(rows: Sequence[Row]) -> dict[str, Any]:
    if not rows:
        return {"accuracy": None, "score": None}
    correct_Q = np.array([row["correct"] for row in rows], dtype=bool)
    share = metrics.accuracy(correct_Q, metrics.video_codes([row["video_id"] for row in rows]))
    return {"accuracy": None if share is None else asdict(share), "score": float(np.mean([row["score"] for row in rows]))}


def _types(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted({row["type"] for row in rows} - {None})


def _named(rows: Sequence[Row], status: str, shown: int) -> dict[str, Any]:
    ids = [row["question_id"] for row in rows if row["status"] == status]
    return {"count": len(ids), "first": ids[:shown]}
