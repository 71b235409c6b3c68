"""Rows of the files that users bring: JSON, JSONL, CSV, TSV, Parquet, on any fsspec URL.

Texts are UTF-8, or UTF-16 with a byte order mark, as spreadsheets write it. Names of columns are taken in lower case and
without spaces around them. Rows are counted from 1, a header is none.
"""

import codecs
import csv
import io
import json
import math
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import fsspec
import pyarrow as pa

from pipeline.errors import ConfigError
from pipeline.parquet import from_parquet

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
Record = dict[str, Any]
"""One row of a question or answer file; Any, as it is whatever the file holds."""


def read_records(path: str, storage_options: Mapping[str, Any] | None = None) -> list[Record]:
    """Read the rows of a .json list, .jsonl, .csv, .tsv or .parquet file. Raises ConfigError if there are none."""
    content = content_of(path, storage_options)
    suffix = PurePosixPath(path).suffix.lower()
    try:
        records = _parse(content, suffix)
    except (ValueError, OSError, RecursionError, pa.ArrowException, csv.Error) as error:
        raise ConfigError(f"cannot read {path} as {suffix or 'a file without a suffix'}: {error}") from error
    if not records:
        raise ConfigError(f"{path}: expected a list of one or more objects, got none")
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise ConfigError(f"{path}: expected a list of one or more objects, row {number} is {str(record)[:120]!r}")
    return [_named(record) for record in records]


def _named(record: Record) -> Record:
    """Return a row with the names of its columns in lower case and without spaces, where two do not become one."""
    names = [str(name).strip().lower() for name in record]
    return record if len(set(names)) < len(names) else dict(zip(names, record.values(), strict=True))


def content_of(path: str, storage_options: Mapping[str, Any] | None = None) -> bytes:
    """Return the bytes of a file. Raises ConfigError if it cannot be read."""
    try:
        with fsspec.open(path, "rb", **(storage_options or {})) as file:
            return bytes(file.read())
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ConfigError(f"cannot read {path}: no such file") from error
    except (OSError, ValueError, ImportError) as error:  # storage, malformed URLs, protocols without a driver
        raise ConfigError(f"cannot read {path}: {type(error).__name__}: {error}") from error


def _parse(content: bytes, suffix: str) -> list[Record]:
    if suffix == ".parquet":
        return list(from_parquet(content).to_pylist())
    text = text_of(content)
    if suffix in (".jsonl", ".ndjson"):
        return _json_lines(text)
    if suffix in (".csv", ".tsv"):
        return _separated(text)
    if suffix == ".json":
        rows = json.loads(text)
        return rows if isinstance(rows, list) else [rows]
    raise ValueError("expected .json, .jsonl, .csv, .tsv or .parquet")


def text_of(content: bytes) -> str:
    """Return the text of a file. Raises ValueError where it is neither UTF-8 nor, with its mark, UTF-16."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line} is not UTF-8, byte {error.start} of the file: save it as UTF-8") from error
    if "\0" in text[:2]:
        raise ValueError("it holds zero bytes, as UTF-16 without a byte order mark does: save it as UTF-8")
    return text


def _json_lines(text: str) -> list[Record]:
    """Return the object of each line. Only a line feed ends one: JSON strings may hold U+2028 and U+0085 as they are."""
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                found.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
    return found


def _separated(text: str) -> list[Record]:
    """Return the rows of a file with a header. A row with more fields than that has lost its quotes, and is refused."""
    csv.field_size_limit(max(len(text), csv.field_size_limit()))
    delimiter = "\t" if "\t" in text.split("\n", 1)[0] else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    found = []
    for record in reader:
        if None in record:
            fields = len(reader.fieldnames or ())
            raise ValueError(f"line {reader.line_num}: expected {fields} fields, got more; quote a text that has {delimiter!r}")
        found.append(record)
    return found


def optional_text(value: object) -> str | None:
    """Return a JSON value as text, None and NaN as None: some files hold numbers where others hold words."""
    return None if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)


def required_texts(records: list[Record], column: str, path: str, *, blank: bool = True) -> list[str]:
    """Return a column as texts. Raises ConfigError for a row without one, or with a `blank` one where that is none."""
    return [_required(record, column, path, number, blank) for number, record in enumerate(records, 1)]


def _required(record: Record, column: str, path: str, number: int, blank: bool) -> str:
    text = optional_text(record.get(column))
    if text is None or not (blank or text.strip()):
        raise ConfigError(f"{path}: row {number} has no {column}: {str(record)[:120]}")
    return text
