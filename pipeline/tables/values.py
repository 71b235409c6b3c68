"""One typed conversion for every value of the files that users bring: manifests, questions, answers, aliases, predictions.

| value | becomes |
|---|---|
| text | itself; half of a surrogate pair is refused |
| integer | its digits |
| integral float, decimal | the digits of the integer, 3.0 is `3`; refused from 2**53 on in float64, where integers merge |
| other float, decimal | its shortest decimal text |
| null, NaN | no value |
| bytes | the UTF-8 text they hold, else refused |
| date, time, timestamp of Parquet | ISO 8601, see `parquet_rows` |
| boolean, list, object, infinity, duration | refused, with file, row and column; a list of answers: several right ones |
"""

import json
import math
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, TypeVar
from uuid import UUID

import numpy as np

from pipeline.errors import ConfigError

Record = dict[str, Any]
"""One row of a file that a user brings; Any, as it is whatever the file holds."""

Answer = str | tuple[str, ...] | None
"""A right answer, several of them, or none."""

T = TypeVar("T")
SHOWN = 60
CONTROLS = tuple(map(chr, (*range(9), *range(14, 32), 127)))
"""Control characters that are no white space: no text holds them on purpose, no tokeniser knows them."""


class NotTextError(ValueError):
    """A value that is no text. The message begins with `got` and says what to do; it names no row and no column."""


def text_of(value: object) -> str | None:
    """Return a value as text, None where it is no value. Raises NotTextError, see the table of this module."""
    if value is None:
        return None
    for kinds, convert in _CONVERSIONS:
        if isinstance(value, kinds):
            return convert(value)
    raise NotTextError(f"got a value of type {type(value).__name__}, expected text or a number")


def _checked(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise NotTextError(
            f"got half of a surrogate pair, \\u{ord(text[error.start]):04x}, in {shown(text)}: it stands for no character; "
            "write the whole pair or remove it"
        ) from error
    return text


def _boolean(value: Any) -> str:
    raise NotTextError(f'got the boolean {json.dumps(bool(value))}, expected text or a number: write a word, such as "yes"')


def _float(value: Any) -> str | None:
    """Return a Python or numpy float as text; its mantissa tells which integers it holds exactly."""
    if math.isnan(value):
        return None
    if math.isinf(value):
        raise NotTextError(f"got {value}, expected a finite number")
    if value != int(value):
        return str(value)
    bits = 53 if type(value) is float else int(np.finfo(type(value)).nmant) + 1
    if abs(value) >= 2**bits:
        raise NotTextError(
            f"got the number {int(value)} as a float, which does not tell integers of 2**{bits} and more apart: "
            "write it as an integer or as text"
        )
    return str(int(value))


def _decimal(value: Decimal) -> str | None:
    if value.is_nan():
        return None
    if value.is_infinite():
        raise NotTextError(f"got {value}, expected a finite number")
    return str(int(value)) if value == value.to_integral_value() else format(value.normalize(), "f")


def _bytes(value: Any) -> str:
    try:
        return bytes(value).decode()
    except UnicodeDecodeError as error:
        raise NotTextError(
            f"got bytes that are not UTF-8 at byte {error.start}, {shown(bytes(value))}: write them as text"
        ) from error


def _list(value: Any) -> str:
    raise NotTextError(f"got a list, {shown(value)}, expected one text or number")


def _object(value: Any) -> str:
    raise NotTextError(f"got an object, {shown(value)}, expected text or a number")


_CONVERSIONS: tuple[tuple[type | tuple[type, ...], Callable[[Any], str | None]], ...] = (
    (str, _checked),
    ((bool, np.bool_), _boolean),  # before int: a boolean is one in Python
    ((int, np.integer, UUID), str),
    ((float, np.floating), _float),
    (Decimal, _decimal),
    ((bytes, bytearray, memoryview), _bytes),
    ((list, tuple), _list),
    (dict, _object),
)


def shown(value: object) -> str:
    """Return the beginning of a value as it may stand in a message: on one line, ASCII only."""
    text = ascii(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def file_name_of(value: object) -> str | None:
    """Return a value as the name of a file: text, in which Python's surrogates stand for bytes that are not UTF-8 (PEP 383)."""
    return value if isinstance(value, str) and _encodable(value, "surrogateescape") else text_of(value)


def texts(records: Sequence[Record], column: str, path: str, *, file_names: bool = False) -> list[str | None]:
    """Return a column as texts, None where there is no value. Raises ConfigError naming file, row and column.

    `file_names`: see `file_name_of`.
    """
    values = [record.get(column) for record in records]
    kinds = set(map(type, values)) - {type(None)}
    if kinds <= {str} and _encodable("".join(filter(None, values))):
        return values
    if kinds == {int}:
        return [None if value is None else str(value) for value in values]
    convert = file_name_of if file_names else text_of
    return [located(convert, value, path, number, column) for number, value in enumerate(values, 1)]


def located(convert: Callable[[Any], T], value: object, path: str, number: int, column: str) -> T:
    """Return a converted value. Raises ConfigError that names file, row and column where it cannot be converted."""
    try:
        return convert(value)
    except NotTextError as error:
        raise ConfigError(f"{path}: row {number}, column {column}: {error}") from error


def _encodable(text: str, errors: str = "strict") -> bool:
    try:
        text.encode(errors=errors)
    except UnicodeEncodeError:
        return False
    return True


def required_texts(records: Sequence[Record], column: str, path: str, *, blank: bool = True) -> list[str]:
    """Return a column as texts. Raises ConfigError for a row without one, or with a `blank` one where that is none."""
    found = texts(records, column, path)
    known = [text for text in found if text is not None]
    if len(known) == len(found) and (blank or all(map(str.strip, known))):
        return known
    number = next(n for n, text in enumerate(found, 1) if text is None or not (blank or text.strip()))
    raise ConfigError(f"{path}: row {number} has no {column}: {shown(records[number - 1])}")


def answer_texts(records: Sequence[Record], column: str, path: str) -> list[Answer]:
    """Return a column of answers. A list is several right answers, one of its elements once, null ones left out."""
    if not any(isinstance(record.get(column), list) for record in records):
        return list(texts(records, column, path))
    return [located(_answer, record.get(column), path, number, column) for number, record in enumerate(records, 1)]


def _answer(value: object) -> Answer:
    if not isinstance(value, list):
        return text_of(value)
    several = tuple(dict.fromkeys(text for text in map(text_of, value) if text is not None))
    return several if len(several) > 1 else next(iter(several), None)


def check_controls(found: Sequence[str | None], column: str, path: str) -> None:
    """Raise ConfigError for a text with a control character that is no white space."""
    joined = "".join(filter(None, found))
    if not any(mark in joined for mark in CONTROLS):
        return
    for number, text in enumerate(found, 1):
        located(uncontrolled, text, path, number, column)


def uncontrolled(text: str | None) -> str | None:
    """Return a text. Raises NotTextError where it holds a control character that is no white space."""
    mark = next((mark for mark in text or "" if mark in CONTROLS), None)
    if mark is not None:
        raise NotTextError(f"got the control character U+{ord(mark):04X} in {shown(text)}: remove it")
    return text
