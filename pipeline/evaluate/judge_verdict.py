"""The verdict in the text of a judge's reply: the fields `pred` and `score` of an object, never words found somewhere.

Which object: the last one of the reply that has a field `pred`, outside of reasoning blocks. Where that one is malformed, cut
short, or contradicts itself, there is no verdict, whatever stands before it. An object inside another counts where the outer
one has no `pred`. A quoted text is not searched for objects.

`pred` is yes, correct, right or true; or no, incorrect, wrong or false; or a short phrase of such words ("not correct"), or a
boolean. `score` is a number of 0 to 5, as a number or a text, "4/5" and "4 out of 5" too; a fraction is cut, as the published
script does.
"""

import json
import re
from dataclasses import dataclass

from pipeline.evaluate.loose_dicts import Fields, Value, objects

_POSITIVE = frozenset({"yes", "correct", "right", "true", "y"})
_NEGATIVE = frozenset({"no", "incorrect", "wrong", "false", "n", "untrue"})
_NEUTRAL = frozenset({"it", "is", "the", "this", "that", "answer", "prediction", "predicted"})
_RIVALS = ("correct", "is_correct", "verdict", "judgement", "judgment")
"""Names that models give a verdict beside `pred`: one that says the opposite leaves the verdict open."""

_PHRASE = re.compile(r"""[\w\s.,;:!'"*`_-]+""")
_WORD = re.compile(r"[^\W_]+")
_SCORE = re.compile(r"(\d{1,3}(?:\.\d*)?)(?:\s*(?:/|out of|of)\s*5(?:\.0*)?)?", re.IGNORECASE | re.ASCII)
_MARKS = " \t\n*_`"
_PRED = re.compile(r"\bpred\b", re.IGNORECASE)

_BLOCKS = "think|thinking|thought|thoughts|reasoning|reason|reflection|scratchpad|analysis|seed:think"
_OPENS = (
    rf"<(?:{_BLOCKS})(?:\s[^<>]*)?>|\[THINK\]|◁think▷|<\|begin_of_thought\|>|<\|START_THINKING\|>"
    r"|<\|channel\|>\s*(?:analysis|commentary)\b[^<]*<\|message\|>"
)
_CLOSES = (
    rf"</(?:{_BLOCKS})\s*>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<\|END_THINKING\|>"
    r"|<\|channel\|>\s*final\b[^<]*<\|message\|>"
)
_EDGE = re.compile(rf"(?P<opens>{_OPENS})|(?:{_CLOSES})", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the judge decided."""

    correct: bool
    score: int
    """0 to 5."""


def verdict(text: str) -> Verdict | None:
    """Return the verdict in a reply, None where it has none that can be read without a guess."""
    found = None
    for candidate in objects(without_reasoning(_unwrapped(text))):
        if isinstance(candidate, Fields):
            for fields in candidate.with_field("pred"):
                found = _verdict(fields)
        elif candidate.cut_short:
            return None
        elif _PRED.search(candidate.text):
            found = None
    return found


def leads(text: str) -> bool:
    """Tell whether a reply begins with its object, so that what it lacks at its end is no part of the verdict."""
    return re.match(r"\s*(?:```\w*\s*)?\{", text) is not None


def without_reasoning(text: str) -> str:
    """Return a reply without its reasoning blocks.

    One that is not closed goes to the end. One that is closed and was not opened began with the reply: some servers have the
    opening mark in the prompt.
    """
    kept: list[str] = []
    at, inside = 0, False
    for edge in _EDGE.finditer(text):
        opens = edge["opens"] is not None
        if not inside:
            kept = [*kept, text[at : edge.start()]] if opens else []
        at, inside = edge.end(), opens
    return "\n".join(kept if inside else [*kept, text[at:]])


def _unwrapped(text: str) -> str:
    """Return the text inside a reply that is one JSON string."""
    try:
        inner = json.loads(text) if text.strip().startswith('"') else text
    except (ValueError, RecursionError):
        return text
    return inner if isinstance(inner, str) else text


def _verdict(fields: Fields) -> Verdict | None:
    """Return what an object says, None where it says nothing or two things."""
    marks, scores = {_mark(value) for value in fields.named("pred")}, {_score(value) for value in fields.named("score")}
    rivals = {_mark(value) for name in _RIVALS for value in fields.named(name)} - {None}
    if len(marks) != 1 or len(scores) != 1 or not rivals <= marks:
        return None
    (correct,), (score,) = marks, scores
    return None if correct is None or score is None else Verdict(correct=correct, score=int(score))


def _mark(value: Value) -> bool | None:
    """Return what a value of `pred` says, None where its words are others, or do not agree."""
    if not isinstance(value, str):
        return None
    text = value.casefold().replace("’", "'").replace("n't", " not")
    if not _PHRASE.fullmatch(text):
        return None
    said, negated = set[bool](), False
    for word in _WORD.findall(text):
        if word == "not":
            negated = True
        elif word in _POSITIVE or word in _NEGATIVE:
            said.add((word in _POSITIVE) != negated)
            negated = False
        elif word not in _NEUTRAL:
            return None
    return said.pop() if len(said) == 1 and not negated else None


def _score(value: Value) -> float | None:
    found = _SCORE.fullmatch(value.strip(_MARKS)) if isinstance(value, str) else None
    return float(found[1]) if found and 0 <= float(found[1]) <= 5 else None
