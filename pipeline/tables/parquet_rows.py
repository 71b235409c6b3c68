"""Rows of a Parquet file as Python values that `values.text_of` takes, whole columns at a time.

Dictionaries, large and view types become what they hold. Dates and times become ISO 8601 texts. A value of a type
that Python cannot hold is refused only where a column with it is used.
"""

from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.storage.parquet_io import from_parquet
from pipeline.tables.values import Record

Column: TypeAlias = pa.ChunkedArray


def parquet_rows(content: bytes) -> list[Record]:
    """Return the rows of a Parquet file. Raises pyarrow's errors, ValueError where two columns have one name."""
    table = from_parquet(content)
    names = table.column_names  # a new list each time it is asked for
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"column {doubled[0]!r} appears more than once: rename one")
    if not table.num_columns:
        return []
    columns = [_values(column) for column in table.columns]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


class Unreadable:
    """A value that Python has no type for; `text_of` refuses it by the name of its class."""


def _values(column: Column) -> list[Any]:
    column = _plain(column)
    for applies, convert in _CONVERSIONS:
        if applies(column.type):
            return convert(column)
    return _python(column)


def _plain(column: Column) -> Column:
    """Return a column without dictionary and extension type."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _plain(column.cast(kind.value_type))
    if isinstance(kind, pa.BaseExtensionType) and not isinstance(kind, (pa.UuidType, pa.Bool8Type)):
        return _plain(pa.chunked_array([chunk.storage for chunk in column.chunks], kind.storage_type))
    return column


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    fixed = pa.types.is_fixed_size_binary(kind)
    return fixed or pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _texts(column: Column) -> list[Any]:
    """Return texts; all as bytes where one is not UTF-8, as writers that check nothing leave it."""
    try:
        return _objects(column.cast(pa.large_binary()).cast(pa.large_string()))
    except pa.ArrowInvalid:
        return _objects(column.cast(pa.large_binary()))


def _objects(column: Column) -> list[Any]:
    found: list[Any] = column.to_numpy(zero_copy_only=False).tolist() if len(column) else []
    return found


def _integers(column: Column) -> list[Any]:
    return _python(column) if column.null_count else _objects(column)


def _short_floats(column: Column) -> list[Any]:
    """Return numpy's float16 and float32, whose texts and limits are not those of float64."""
    scalar = column.type.to_pandas_dtype()
    return [None if value is None else scalar(value) for value in column.to_pylist()]


def _times(column: Column) -> list[Any]:
    """Return ISO 8601 texts, without a fraction of zero."""
    shown = column.cast(pa.large_string())
    if pc.any(pc.match_substring(shown, "out of range")).as_py():
        return _unreadable(column)
    if pa.types.is_timestamp(column.type):
        shown = pc.replace_substring(shown, " ", "T", max_replacements=1)
    zone = r"(Z|[+-]\d{4})?$"
    shown = pc.replace_substring_regex(shown, r"(\.\d*?)0+" + zone, r"\1\2")
    return _objects(pc.replace_substring_regex(shown, r"\." + zone, r"\1"))


def _python(column: Column) -> list[Any]:
    try:
        found: list[Any] = column.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError):
        return _unreadable(column)
    return found


def _unreadable(column: Column) -> list[Any]:
    kind = type(f"{column.type} out of range", (Unreadable,), {})
    return [kind() if valid else None for valid in column.is_valid().to_pylist()]


def _is_time(kind: pa.DataType) -> bool:
    return bool(pa.types.is_date(kind) or pa.types.is_time(kind) or pa.types.is_timestamp(kind))


_CONVERSIONS = (
    (_is_text, _texts),
    (_is_bytes, _texts),
    (pa.types.is_integer, _integers),
    (lambda kind: kind in (pa.float16(), pa.float32()), _short_floats),
    (_is_time, _times),
)
