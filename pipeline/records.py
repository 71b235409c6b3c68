"""Rows of the files that users bring: JSON, JSONL, CSV, TSV, Parquet, on any fsspec URL."""

import csv
import io
import json
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
    except (ValueError, pa.ArrowInvalid, csv.Error) as error:
        raise ConfigError(f"cannot read {path} as {suffix or 'a file without a suffix'}: {error}") from error
    if not records or not all(isinstance(record, dict) for record in records):
        raise ConfigError(f"{path}: expected a list of one or more objects")
    return records


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
    text = content.decode("utf-8-sig")
    if suffix in (".jsonl", ".ndjson"):
        return _json_lines(text)
    if suffix in (".csv", ".tsv"):
        return _separated(text)
    if suffix == ".json":
        rows = json.loads(text)
        return rows if isinstance(rows, list) else [rows]
    raise ValueError("expected .json, .jsonl, .csv, .tsv or .parquet")


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
    """Return a JSON value as text, None as None: some files hold numbers where others hold words."""
    return None if value is None else str(value)


def required_text(record: Record, column: str, path: str) -> str:
    """Return a value of a row as text. Raises ConfigError where the row has none."""
    value = record.get(column)
    if value is None:
        raise ConfigError(f"{path}: a row has no {column}: {str(record)[:120]}")
    return str(value)
