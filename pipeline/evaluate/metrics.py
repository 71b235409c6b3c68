"""Scores, pure: predictions and references in, numbers out. Shapes: Q questions, V videos.

A missing prediction is None and counts as wrong. Questions of one video are not independent, so every interval is
clustered by video. WUPS is left out: it needs the WordNet corpus, and the released ActivityNet-QA script has none.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.questions.datasets import ACTIVITYNET_TYPES, SEVERAL_ANSWERS

FREE_TYPES = ACTIVITYNET_TYPES[3:]
"""The six answer types that ActivityNet-QA calls "Free"."""

Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEENS = ("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_NUMBERS = {word: n for n, word in enumerate(_DIGITS + _TEENS)} | {word: 10 * n for n, word in enumerate(_TENS, start=2)}
_ARTICLES = frozenset({"a", "an", "the"})
_TENS_AND_UNITS = re.compile(rf"\b({'|'.join(_TENS)})[ -]({'|'.join(_DIGITS[1:])})\b")

Bools = npt.NDArray[np.bool_]
Reference = str | list[str]
"""The right answer to a question, or several, any of which is right."""


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """A share of right answers with its 95 % interval, clustered by video."""

    accuracy: float
    low: float
    high: float
    correct: int
    asked: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Mean accuracy of one run minus that of another on the same questions, with its 95 % interval."""

    difference: float
    low: float
    high: float
    better: int
    worse: int


def normalise(text: str) -> str:
    """Return an answer as we compare it: lower case, one space, digits for number words, no article or end mark."""
    lowered = " ".join(text.lower().replace("’", "'").split()).strip(" .,!?;:\"'")
    summed = _TENS_AND_UNITS.sub(lambda m: str(_NUMBERS[m[1]] + _NUMBERS[m[2]]), lowered)
    words = [str(_NUMBERS.get(word, word)) for word in summed.split()]
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def references(questions: pa.Table) -> list[Reference]:
    """Return the right answer of each question of a table, a list where it has several."""
    first: list[Reference] = questions["answer"].to_pylist()
    if SEVERAL_ANSWERS.name not in questions.column_names:
        return first
    return [several or one for several, one in zip(questions[SEVERAL_ANSWERS.name].to_pylist(), first, strict=True)]


def exact_matches(predictions: Sequence[str | None], answers: Sequence[Reference]) -> Bools:
    """Compare as ActivityNet-QA's script does: the same string as a right answer, or wrong. Returns (Q,)."""
    return np.array([p in _each(a) for p, a in zip(predictions, answers, strict=True)], dtype=bool)


def normalised_matches(predictions: Sequence[str | None], answers: Sequence[Reference]) -> Bools:
    """Compare normalised answers; where the reference is yes or no, the first word of the prediction. Returns (Q,)."""
    return np.array([any(_same(p, one) for one in _each(a)) for p, a in zip(predictions, answers, strict=True)], dtype=bool)


def _each(answer: Reference) -> list[str]:
    return answer if isinstance(answer, list) else [answer]


def _same(prediction: str | None, answer: str) -> bool:
    if prediction is None:
        return False
    said, wanted = normalise(prediction), normalise(answer)
    if wanted in ("yes", "no"):
        return re.split(r"\W", said, maxsplit=1)[0] == wanted
    return said == wanted


def video_codes(video_ids: Sequence[str]) -> npt.NDArray[np.int64]:
    """Number the videos. Returns (Q,), equal for questions of one video."""
    return np.unique(np.asarray(video_ids, dtype=object).astype(str), return_inverse=True)[1].reshape(-1)


def accuracy(correct_Q: Bools, video_Q: npt.NDArray[np.int64]) -> Accuracy | None:
    """Return the share of right answers; None if nothing was asked.

    The interval is Wilson's with the effective number of questions n_eff = p(1-p) / var, where var is the
    cluster-robust variance of the mean: V/(V-1) * sum over videos of (sum of residuals)^2 / Q^2. n_eff never exceeds Q;
    where all answers are right or all wrong the variance says nothing and n_eff is the number of videos.
    """
    asked = correct_Q.size
    if asked == 0:
        return None
    share = float(correct_Q.mean())
    variance, videos = _clustered_variance(correct_Q.astype(np.float64), video_Q)
    effective = min(float(asked), share * (1 - share) / variance) if variance > 0 else float(videos)
    low, high = _wilson(share, effective)
    return Accuracy(accuracy=share, low=low, high=high, correct=int(correct_Q.sum()), asked=asked)


def paired_difference(ours_Q: Bools, theirs_Q: Bools, video_Q: npt.NDArray[np.int64]) -> Difference | None:
    """Compare two runs question by question: a normal interval with the variance clustered by video."""
    if ours_Q.size == 0:
        return None
    delta_Q = ours_Q.astype(np.float64) - theirs_Q
    mean = float(delta_Q.mean())
    half = Z_95 * math.sqrt(_clustered_variance(delta_Q, video_Q)[0])
    better, worse = int((delta_Q > 0).sum()), int((delta_Q < 0).sum())
    return Difference(difference=mean, low=max(-1.0, mean - half), high=min(1.0, mean + half), better=better, worse=worse)


def _clustered_variance(value_Q: npt.NDArray[np.float64], video_Q: npt.NDArray[np.int64]) -> tuple[float, int]:
    """Return the variance of the mean and the number of videos; one video alone has no variance to measure."""
    _, code_Q = np.unique(video_Q, return_inverse=True)
    residual_V = np.bincount(code_Q, weights=value_Q - value_Q.mean())
    videos = residual_V.size
    if videos == 1:
        return 0.0, 1
    return float(videos / (videos - 1) * np.square(residual_V).sum() / value_Q.size**2), videos


def _wilson(share: float, n: float) -> tuple[float, float]:
    shrink = 1 + Z_95**2 / n
    centre = (share + Z_95**2 / (2 * n)) / shrink
    half = Z_95 * math.sqrt(share * (1 - share) / n + Z_95**2 / (4 * n**2)) / shrink
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def activitynet_accuracies(correct_Q: Bools, types: Sequence[str | None]) -> dict[str, float | None]:
    """Return the eleven lines of ActivityNet-QA's script: nine types, "free" over types 3 to 8, and "all".

    Departs: the released script counts the questions of "free" by position in a dict ordered by first appearance and so
    divides by the wrong number (4021 for the 5600 of the test split); see `free_published`.
    """
    type_Q = np.asarray(types, dtype=object)
    members = {name: type_Q == name for name in ACTIVITYNET_TYPES}
    members["free"] = np.isin(type_Q.astype(str), FREE_TYPES)
    members["all"] = np.ones(type_Q.size, dtype=bool)
    return {name: float(correct_Q[chosen].mean()) if chosen.any() else None for name, chosen in members.items()}


def free_published(correct_Q: Bools, types: Sequence[str | None]) -> float | None:
    """Return "Free" as MILVLG/activitynet-qa evaluation/eval.py at 2cf80ae computes it, for comparing with old tables.

    It depends on the order of the questions: the first three types to appear are left out of the denominator.
    """
    type_Q = np.asarray(types, dtype=object)
    counted = list(dict.fromkeys(types))[3:]
    denominator = sum(int((type_Q == name).sum()) for name in counted)
    right = int(correct_Q[np.isin(type_Q.astype(str), FREE_TYPES)].sum())
    return right / denominator if denominator else None


def by_type(correct_Q: Bools, types: Sequence[str | None], video_Q: npt.NDArray[np.int64]) -> dict[str, Accuracy]:
    """Return the accuracy of each question type, in alphabetical order; questions without a type are left out."""
    type_Q = np.asarray(types, dtype=object)
    found = {name: accuracy(correct_Q[type_Q == name], video_Q[type_Q == name]) for name in sorted({*types} - {None})}  # type: ignore[type-var]
    return {name: share for name, share in found.items() if name is not None and share is not None}


def summary(correct_Q: Bools, answered_Q: Bools, video_Q: npt.NDArray[np.int64]) -> dict[str, float | int | None]:
    """Return accuracy over all questions (missing ones wrong) and, beside it, over the answered ones alone."""
    overall = accuracy(correct_Q, video_Q)
    answered = float(correct_Q[answered_Q].mean()) if answered_Q.any() else None
    return {**(asdict(overall) if overall else {}), "answered_only": answered}
