"""Other names of videos, from a file."""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from pipeline.errors import ConfigError
from pipeline.tables.tabular import SUFFIXES, content_of, decoded, read_records
from pipeline.tables.values import check_controls, required_texts

BLANKS = re.compile(" +")


def read_aliases(path: str, storage_options: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Read pairs of names as a dict that leads from either name to the other.

    JSON, CSV and Parquet files have columns name and video_id, and several names may mean one video. Other files have two
    names on a line, as MSVD's youtube_mapping.txt (`name vidN`). Raises ConfigError where one name means two videos.
    """
    read = _alias_rows if PurePosixPath(path).suffix.lower() in SUFFIXES else _alias_lines
    pairs = read(path, storage_options)
    found: dict[str, str] = {}
    for one, other in pairs:
        if found.setdefault(one, other) != other:
            raise ConfigError(f"{path}: expected one other name for {one!r}, got {found[one]!r} and {other!r}")
    return {**{other: one for one, other in reversed(pairs)}, **found}


def _alias_lines(path: str, storage_options: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    try:
        text = decoded(content_of(path, storage_options))
    except ValueError as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    lines = [_fields(line) for line in text.split("\n") if line.strip()]
    if not lines or not all(len(line) == 2 for line in lines):
        raise ConfigError(f"{path}: expected two names on each line")
    return [(one, other) for one, other in lines]


def _fields(line: str) -> list[str]:
    """Return the names on a line, apart by a tab, or by blanks where it has none; any other space is part of a name."""
    line = line.strip(" \t\r")
    return [one.strip(" ") for one in line.split("\t") if one.strip(" ")] if "\t" in line else BLANKS.split(line)


def _alias_rows(path: str, storage_options: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    records = read_records(path, storage_options)
    names: set[str] = set().union(*records)
    if not {"name", "video_id"} <= names:
        raise ConfigError(f"{path}: expected columns name and video_id, got {sorted(names)}")
    columns = {column: required_texts(records, column, path, blank=False) for column in ("name", "video_id")}
    for column, found in columns.items():
        check_controls(found, column, path)
    return list(zip(*columns.values(), strict=True))
