"""Right answers: one, several or none for a question, in the question file or in a file of their own."""

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pipeline.errors import ConfigError
from pipeline.tables.json_layouts import by_id
from pipeline.tables.tabular import read_records
from pipeline.tables.values import (
    Answer,
    Record,
    answer_texts,
    check_controls,
    located,
    required_texts,
    shown,
    texts,
    uncontrolled,
)

Text = TypeVar("Text", str, Answer)
_ENTITY = re.compile(r"&(?:#\d+|#[xX][0-9a-fA-F]+|\w+);")
"""An entity as data sets hold it, with its semicolon: `html.unescape` alone takes `&not` out of a word as well."""


@dataclass(frozen=True, kw_only=True)
class GivenAnswer:
    """What an answer file says about a question; `typed`: whether it names a type."""

    right: Answer
    type: str | None
    typed: bool


def read_answers(path: str, ids: list[str], storage_options: Mapping[str, Any] | None = None) -> dict[str, GivenAnswer]:
    """Read a file of answers by question id. Raises ConfigError for two answers to one question, or none to any of `ids`."""
    rows = by_id(read_records(path, storage_options), "answer")
    column = "question_id" if any("question_id" in row for row in rows) else "id"
    named = [question_id.strip() for question_id in required_texts(rows, column, path, blank=False)]
    right, types = right_answers(rows, path), texts(rows, "type", path)
    found: dict[str, GivenAnswer] = {}
    for number, (question_id, answer) in enumerate(zip(named, right, strict=True), 1):
        if answer is None:
            raise ConfigError(f"{path}: row {number} has no answer: {shown(rows[number - 1])}")
        given = GivenAnswer(right=answer, type=types[number - 1], typed="type" in rows[number - 1])
        if found.setdefault(question_id, given) != given:
            raise ConfigError(f"{path}: question {question_id!r} has two different answers")
    if found.keys().isdisjoint(ids):
        raise ConfigError(f"{path}: none of its {len(found)} answers belongs to one of the {len(ids)} questions")
    return found


def right_answers(records: list[Record], path: str) -> list[Answer]:
    """Return the right answers of each row, in a column `answer`, or `answers` where no row has that."""
    column = "answer" if any("answer" in record for record in records) else "answers"
    right = answer_texts(records, column, path)
    for number, answer in enumerate(right, 1):
        if isinstance(answer, tuple):
            for text in answer:
                located(uncontrolled, text, path, number, column)
    check_controls([answer if isinstance(answer, str) else None for answer in right], column, path)
    return right


def unescaped(found: list[Text], dataset: str) -> list[Text]:
    """Return texts of a known data set with HTML entities as the characters they stand for; those of others as they are."""
    if dataset == "plain":
        return found
    return [_characters(text) if text and "&" in "".join(text) else text for text in found]


def _characters(text: Any) -> Any:
    """Return a text, or several, without entities. Any: as it came."""
    if isinstance(text, tuple):
        return tuple(dict.fromkeys(map(_characters, text)))
    return _ENTITY.sub(lambda entity: html.unescape(entity[0]), text)
