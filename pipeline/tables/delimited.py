"""Rows of a CSV: the delimiter is told from the header; what cannot be cut into columns is refused with its line.

A field is text, an empty one no value, except in columns of questions and predictions, where it stays an empty text. Spaces
behind a delimiter are not part of a field unless it is quoted. A column in which every value is a whole number with `.0` is
one of floats, as pandas writes integers beside missing values, and is read as such.
"""

import csv
import io
import re
from collections.abc import Collection, Iterator, Sequence
from itertools import islice

from pipeline.tables.values import Record

DELIMITERS = ("\t", ",", ";", "|")
BATCH = 4096
EMPTY_TEXTS = frozenset({"question", "prediction", "pred"})
"""Columns in which an empty field is an empty text."""

_DECLARED = re.compile(r"\ufeff?\"?sep=(.)\"?\s*", re.IGNORECASE)
_FLOAT = re.compile(r"-?\d+\.0|-?\d(?:\.\d+)?e\+\d+")
_WHOLE = re.compile(r"-?\d+\.0")


def separated_rows(text: str, known: Collection[str]) -> list[Record]:
    """Return the rows of a file with a header; `known`: names of columns that a header may have.

    Raises ValueError naming the line of a row with more or fewer fields than the header, or of a quote that is not closed.
    """
    csv.field_size_limit(max(len(text), csv.field_size_limit()))
    lines = list(io.StringIO(text, newline=""))
    first, delimiter = _start(lines, known)
    rows = _rows(lines, first, delimiter)
    names = next(rows, [])
    _check_names(names)
    values = [_values(name, column) for name, column in zip(names, _columns(rows, len(names)), strict=True)]
    return [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]


def _start(lines: Sequence[str], known: Collection[str]) -> tuple[int, str]:
    """Return the place of the header and the delimiter; Excel may name it in a line of its own, `sep=;`."""
    first = next((place for place, line in enumerate(lines) if line.strip()), len(lines))
    if first == len(lines):
        return first, ","
    if declared := _DECLARED.fullmatch(lines[first]):
        return first + 1, declared[1]
    return first, max(DELIMITERS, key=lambda delimiter: _fit(lines[first], delimiter, known))


def _fit(header: str, delimiter: str, known: Collection[str]) -> tuple[int, int]:
    """Return how many known columns, and how many at all, a header has by a delimiter."""
    names = next(csv.reader([header], delimiter=delimiter, skipinitialspace=True), [])
    recognised = sum(name.strip().lower() in known for name in names)
    return recognised, len(names) if delimiter != "|" or recognised else 0


def _rows(lines: Sequence[str], first: int, delimiter: str) -> Iterator[list[str]]:
    """Yield the header and every row that holds anything."""
    reader = csv.reader(lines[first:], delimiter=delimiter, skipinitialspace=delimiter != "\t", strict=True)
    indented = any(line.startswith(" ") for line in lines)
    header: list[str] = []
    start, number = first, 0
    try:
        for row in reader:
            if row and (row[0] or any(map(str.strip, row))):
                header = header or row
                if len(row) != len(header):
                    raise ValueError(f"line {start + 1}: {_ragged(row, header, number, delimiter)}")
                if indented:
                    row[0] = _indent(lines[start]) + row[0]
                number += 1
                yield row
            start = first + reader.line_num
    except csv.Error as error:
        raise ValueError(f"line {start + 1}: {_quoting(str(error), delimiter)}") from error


def _ragged(row: Sequence[str], header: Sequence[str], number: int, delimiter: str) -> str:
    if len(row) > len(header):
        return f"expected {len(header)} fields, got more, {len(row)}; quote a text that has {delimiter!r}"
    missing = ", ".join(header[len(row) :])
    return (
        f"expected {len(header)} fields, got {len(row)}: row {number} has no {missing}; an empty field needs its {delimiter!r}"
    )


def _indent(line: str) -> str:
    """Return the spaces in front of the first field, which follow no delimiter: a name may begin with them."""
    rest = line.lstrip(" ")
    return "" if rest.startswith('"') else line[: len(line) - len(rest)]


def _quoting(reason: str, delimiter: str) -> str:
    if "unexpected end" in reason:
        return 'a quote is opened here and never closed; write a quote inside a text twice, ""'
    return f'a closing quote is followed by other text, expected {delimiter!r}; write a quote inside a text twice, ""'


def _check_names(names: Sequence[str]) -> None:
    plain = [name.strip() for name in names if name.strip()]
    if doubled := [name for name in plain if plain.count(name) > 1]:
        raise ValueError(f"column {doubled[0]!r} appears more than once in the header: rename one")


def _columns(rows: Iterator[list[str]], width: int) -> list[list[str]]:
    """Return the columns of rows, some thousand rows at a time: few lists live at once, which garbage collection walks."""
    columns: list[list[str]] = [[] for _ in range(width)]
    while batch := list(islice(rows, BATCH)):
        for column, part in zip(columns, zip(*batch, strict=True), strict=True):
            column.extend(part)
    return columns


def _values(name: str, column: Sequence[str]) -> Sequence[str | float | None]:
    if name.strip().lower() in EMPTY_TEXTS:
        return column
    if not column or ("" not in column and not column[0].endswith(".0") and "e+" not in column[0]):
        return column
    filled = [field for field in column if field]
    if any(map(_WHOLE.fullmatch, filled)) and all(map(_FLOAT.fullmatch, filled)):
        return [float(field) if field else None for field in column]
    return [field or None for field in column]
