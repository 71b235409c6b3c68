"""Rows of the files that users bring: JSON, JSONL, CSV, TSV, Parquet, on any fsspec URL.

Texts are UTF-8, or UTF-16 or UTF-32 with a byte order mark, as spreadsheets write it. Names of columns are taken in lower case
and without spaces around them. Rows are counted from 1, a header is none. Values are what the file holds, see `values`.
"""

import codecs
import csv
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import fsspec
import pyarrow as pa

from pipeline.errors import ConfigError
from pipeline.tables.delimited import separated_rows
from pipeline.tables.json_layouts import KNOWN, rows_of
from pipeline.tables.json_text import json_values
from pipeline.tables.parquet_rows import parquet_rows
from pipeline.tables.values import Record, shown

LINES = (".jsonl", ".ndjson")
SUFFIXES = (".json", *LINES, ".csv", ".tsv", ".parquet")


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
            raise ConfigError(f"{path}: expected a list of one or more objects, row {number} is {shown(str(record))}")
    return _named(records)


def _named(records: list[Record]) -> list[Record]:
    """Return rows with the names of their columns in lower case and without spaces, where two do not become one."""
    names: dict[tuple[str, ...], list[str] | None] = {}
    return [_renamed(record, names) for record in records]


def _renamed(record: Record, known: dict[tuple[str, ...], list[str] | None]) -> Record:
    """Return a row under its plain names; `known`: those of the rows before, None where a row stays as it is."""
    columns = tuple(record)
    if columns not in known:
        names = [str(name).strip().lower() for name in columns]
        known[columns] = None if len(set(names)) < len(names) or names == [*columns] else names
    plain = known[columns]
    return record if plain is None else dict(zip(plain, record.values(), strict=True))


def content_of(path: str, storage_options: Mapping[str, Any] | None = None) -> bytes:
    """Return the bytes of a file. Raises ConfigError if it cannot be read."""
    try:
        with fsspec.open(path, "rb", **(storage_options or {})) as file:
            return bytes(file.read())
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ConfigError(f"cannot read {path}: no such file") from error
    except (OSError, ValueError, ImportError) as error:  # storage, malformed URLs, protocols without a driver
        raise ConfigError(f"cannot read {path}: {type(error).__name__}: {error}") from error


def _parse(content: bytes, suffix: str) -> list[Any]:
    if suffix == ".parquet":
        return parquet_rows(content)
    text = decoded(content)
    if suffix in (".json", *LINES):
        return rows_of(json_values(text, lines=suffix in LINES))
    if suffix in (".csv", ".tsv"):
        return separated_rows(text, KNOWN)
    raise ValueError("expected .json, .jsonl, .csv, .tsv or .parquet")


def decoded(content: bytes) -> str:
    """Return the text of a file. Raises ValueError where it is neither UTF-8 nor, with its mark, UTF-16 or UTF-32."""
    if content.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return content.decode("utf-32")
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
