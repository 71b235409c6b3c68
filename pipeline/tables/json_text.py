"""JSON as people write it: one value, one value per line, or several values one after the other, whatever the suffix says.

What is no JSON is refused with its line, and by name where the fault is a known one: a trailing comma, single quotes.
"""

import json
from typing import Any

_GAPS = " \t\r\n\ufeff\x1e"
"""What may stand between two values: white space, the mark of files that were joined, the mark of JSON text sequences."""


def json_values(text: str, *, lines: bool) -> list[Any]:
    """Return the values of a text; `lines`: whether the suffix promises one on each line. Raises ValueError with the line."""
    first, second = (_line_values, _whole) if lines else (_whole, _line_values)
    try:
        return first(text)
    except ValueError as error:
        for other in (second, _joined):
            try:
                if found := other(text):
                    return found
            except (ValueError, RecursionError):
                continue
        raise error


def _whole(text: str) -> list[Any]:
    try:
        return [json.loads(text)]
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}: {_fault(error)}") from error


def _line_values(text: str) -> list[Any]:
    """Return the value of each line. Only a line feed ends one: JSON strings may hold U+2028 and U+0085 as they are."""
    lines = [line for line in text.split("\n") if line.strip(_GAPS)]
    try:
        found: list[Any] = json.loads(f"[{','.join(lines)}]")  # one call takes half the time of one for each line
        if len(found) == len(lines):
            return found
    except ValueError:
        pass
    return [_line(line, number) for number, line in enumerate(text.split("\n"), 1) if line.strip(_GAPS)]


def _line(line: str, number: int) -> Any:
    try:
        return json.loads(line.strip(_GAPS))
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number}: {_fault(error)}") from error


def _joined(text: str) -> list[Any]:
    """Return values that stand one after the other, each on as many lines as it takes."""
    decoder, place, found = json.JSONDecoder(), 0, []
    while (place := _after_gaps(text, place)) < len(text):
        value, place = decoder.raw_decode(text, place)
        found.append(value)
    return found


def _after_gaps(text: str, place: int) -> int:
    while place < len(text) and text[place] in _GAPS:
        place += 1
    return place


def _fault(error: json.JSONDecodeError) -> str:
    """Return what is wrong and what to do, for the faults that editors and other languages leave in JSON."""
    before, behind = error.doc[: error.pos + 1].rstrip(), error.doc[error.pos :].lstrip()
    if error.msg == "Extra data" and behind.startswith(","):
        return f"{error}: a trailing comma behind the value; remove it, or write all values as one list"
    if before.rstrip("]} \n\r\t").endswith(",") and behind[:1] in ("]", "}"):
        return f"{error}: a trailing comma in front of {behind[:1]!r}; remove it"
    if behind.startswith("'"):
        return f"{error}: single quotes, which JSON has not; write texts in double quotes"
    return str(error)
