"""Rows in the JSON that libraries write: lists of objects, and the objects that hold them in other ways.

| file | read as |
|---|---|
| `[{...}, ...]`, one or more objects one after the other | rows |
| pandas `columns`: `{"question": {"0": ...}}`; `list`: `{"question": [...]}` | columns |
| pandas `split`, `tight`: `{"columns": [...], "data": [[...]]}`; `table`: `{"schema": ..., "data": [...]}` | rows |
| `{"data": [...]}`, `{"info": ..., "questions": [...]}` | the one list of objects in it |
| `{"q1": {"question": ...}}`, pandas `index` | rows; the key is the question id, or the video id where a row has no video |
| `{"v1": [{"question": ...}, ...]}` | rows; the key is the video id |
| `[{"role": ..., "content": ...}, ...]`, or lists of such messages | rows with `messages` |
| pandas `values`: `[[...], ...]` | refused: the columns have no names |
"""

from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.tables.values import Record, shown

VIDEO_COLUMNS = ("video_id", "video_name", "gif_name", "video", "videos", "video_path", "path")
CONTENT = frozenset({"question", "answer", "prediction", "pred", "uri", "conversations", "messages", "name"})
"""Columns that only a row has, or a file by columns: the list that an object wraps stands beside none of them."""
KNOWN = CONTENT | {*VIDEO_COLUMNS, "question_id", "id", "vid_id", "type", "turn", "status", "answers"}
"""Columns that mean something in one of our files."""
WRAPPERS = ("data", "questions", "rows", "records", "annotations", "answers", "predictions", "results", "items", "samples")

Json = dict[str, Any]
"""Any, as it is JSON."""


def rows_of(values: list[Any]) -> list[Any]:
    """Return the rows in the values of a file. Raises ValueError for a layout without column names, or with several lists."""
    if len(values) == 1:
        return _rows(values[0])
    return [row for value in values for row in (_rows(value) if isinstance(value, list) else [value])]


def by_id(rows: list[Record], column: str) -> list[Record]:
    """Return the rows of a file that is one object of ids and texts, `{"q1": "red"}`; any other rows as they are."""
    if len(rows) != 1 or _names(rows[0]) & KNOWN or any(isinstance(value, dict) for value in rows[0].values()):
        return rows
    return [{"question_id": key, column: value} for key, value in rows[0].items()]


def _rows(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return _rows_of_object(value)
    if not isinstance(value, list):
        return [value]
    if _messages(value):
        return [{"messages": value}]
    rows = [{"messages": row} if _messages(row) else row for row in value]
    if unnamed := next((row for row in rows if isinstance(row, list)), None):
        raise ValueError(f"rows are lists without names of columns, such as {shown(unnamed)}: write each row as an object")
    return rows


def _messages(value: Any) -> bool:
    """Tell a conversation, which is a list of messages, from a list of rows."""
    return isinstance(value, list) and bool(value) and all(map(_is_message, value))


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and ({"role", "content"} <= value.keys() or {"from", "value"} <= value.keys())


def _rows_of_object(value: Json) -> list[Any]:
    for read in (_split, _table, _columns, _keyed, _wrapped):
        if (found := read(value)) is not None:
            return found
    return [value]


def _split(value: Json) -> list[Any] | None:
    names, data = value.get("columns"), value.get("data")
    if not isinstance(names, list) or not isinstance(data, list):
        return None
    for number, row in enumerate(data, 1):
        if not isinstance(row, list) or len(row) != len(names):
            raise ValueError(f"row {number} of data: expected a list of {len(names)} values, one a column, got {shown(row)}")
    return [dict(zip(map(str, names), row, strict=True)) for row in data]


def _table(value: Json) -> list[Any] | None:
    data = value.get("data")
    return data if isinstance(data, list) and isinstance(value.get("schema"), dict) else None


def _columns(value: Json) -> list[Any] | None:
    """Return the rows of an object that holds a column under each name, as a list or by the name of the row."""
    if not _names(value) & KNOWN - {*WRAPPERS} or not (_all(value, list) or _all(value, dict)) or _is_conversation(value):
        return None
    if _all(value, list):
        lengths = {name: len(column) for name, column in value.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"expected columns of one length, got {shown(lengths)}")
        return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    numbers = dict.fromkeys(number for column in value.values() for number in column)
    return [{name: column.get(number) for name, column in value.items()} for number in numbers]


def _is_conversation(value: Json) -> bool:
    """Tell one row with a conversation, whose messages are objects, from a column of conversations."""
    return any(isinstance(value.get(name), list) and _objects(value[name]) for name in ("conversations", "messages"))


def _keyed(value: Json) -> list[Any] | None:
    """Return the rows of an object that holds them by question or by video."""
    if _names(value) & KNOWN or not value:
        return None
    if _all(value, dict) and all(_names(row) & KNOWN for row in value.values()):
        return [_with_key(key, row) for key, row in value.items()]
    lists = _all(value, list) and all(map(_objects, value.values())) and not set(value) & {*WRAPPERS}
    if lists and not any(_names(row) & {*VIDEO_COLUMNS} for rows in value.values() for row in rows):
        return [_with_key(key, row) for key, rows in value.items() for row in rows]
    return None


def _with_key(key: str, row: Json) -> Json:
    names = _names(row)
    if "question" in names and not names & {*VIDEO_COLUMNS}:
        return {"video_id": key, **row}
    return row if names & {"question_id", "id", "vid_id"} else {"question_id": key, **row}


def _wrapped(value: Json) -> list[Any] | None:
    """Return the one list of objects in an object that is no row itself."""
    if _names(value) & CONTENT - {"name"}:
        return None
    lists = [name for name, held in value.items() if isinstance(held, list) and _objects(held)]
    if len(lists) > 1:
        raise ValueError(f"several lists of rows, {', '.join(map(repr, lists))}: expected one; write each to a file of its own")
    if lists:
        return list(value[lists[0]])
    inner = [held for name, held in value.items() if name in WRAPPERS and isinstance(held, dict) and held]
    return _rows_of_object(inner[0]) if len(inner) == 1 else None


def _names(row: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(str(name).strip().lower() for name in row)


def _all(value: Json, kind: type) -> bool:
    return bool(value) and all(isinstance(held, kind) for held in value.values())


def _objects(rows: Iterable[Any]) -> bool:
    """Tell whether something holds objects only, one at least."""
    held = list(rows)
    return bool(held) and all(isinstance(row, dict) for row in held)
