"""Ids of questions: the file's own, and made ones that depend on nothing but the video and the text."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

from pipeline.errors import ConfigError
from pipeline.tables.values import Record, check_controls, texts

SHOWN = 3


def question_ids(records: Sequence[Record], columns: Sequence[str], names: list[str], asked: list[str], path: str) -> list[str]:
    """Return one unique id per row: its own, else one made from video and question, so that order is free.

    Args:
        columns: where ids may stand; the first that any row has is taken.
        names: the video of each row.
        asked: the question of each row.

    Raises ConfigError for an id that two rows have; 1, 1.0 and "1" are the same id.
    """
    own = own_ids(records, columns, path)
    if None not in own and len(set(own)) == len(own):
        return [question_id for question_id in own if question_id is not None]
    taken, seen = _taken(own, path), Counter[str]()
    rows = zip(own, names, asked, strict=True)
    return [_made_id(name, text, taken, seen) if question_id is None else question_id for question_id, name, text in rows]


def own_ids(records: Sequence[Record], columns: Sequence[str], path: str) -> list[str | None]:
    """Return the id that each row has in the first of these columns that any row has; None where it has none."""
    for column in columns:
        found = texts(records, column, path)
        stripped = [text.strip() or None if text is not None else None for text in found]
        if any(stripped):
            check_controls(stripped, column, path)
            return stripped
    return [None] * len(records)


def _taken(own: Iterable[str | None], path: str) -> set[str]:
    """Return all ids of a file. Raises ConfigError where one stands twice."""
    rows: dict[str, int] = {}
    doubled: dict[str, tuple[int, int]] = {}
    for number, question_id in enumerate(own, 1):
        if question_id is not None and rows.setdefault(question_id, number) != number:
            doubled.setdefault(question_id, (rows[question_id], number))
    if doubled:
        places = [f"{name!r} in rows {first} and {second}" for name, (first, second) in list(doubled.items())[:SHOWN]]
        raise ConfigError(f"{path}: {len(doubled)} question ids are used more than once, such as {', '.join(places)}")
    return set(rows)


def _made_id(name: str, text: str, taken: set[str], seen: Counter[str]) -> str:
    """Return an id that no other row has: the same question may be asked twice of one video, the second one gets `:2`."""
    first = f"{name}:{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    made = None
    while made is None or made in taken:
        seen[first] += 1
        made = first if seen[first] == 1 else f"{first}:{seen[first]}"
    taken.add(made)
    return made
