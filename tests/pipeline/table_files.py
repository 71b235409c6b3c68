"""One logical table, written as the programs write it that people export tables from."""

import csv
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

Rows = list[dict[str, Any]]
Write = Callable[[Rows], bytes]


def names(rows: Rows) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def separated(rows: Rows, delimiter: str, gap: str = "", encoding: str = "utf-8") -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerow(names(rows))
    writer.writerows([["" if row.get(name) is None else row[name] for name in names(rows)] for row in rows])
    return out.getvalue().replace(f'"{delimiter}"', f'"{delimiter}{gap}"').encode(encoding)


def columns(rows: Rows) -> dict[str, list[Any]]:
    return {name: [row.get(name) for row in rows] for name in names(rows)}


def split(rows: Rows) -> dict[str, Any]:
    return {"columns": names(rows), "index": [*range(len(rows))], "data": [[r.get(n) for n in names(rows)] for r in rows]}


def by_column(rows: Rows) -> dict[str, Any]:
    return {name: {str(n): value for n, value in enumerate(column)} for name, column in columns(rows).items()}


def parquet(rows: Rows, kind: Callable[[pa.Array], pa.Array] = lambda column: column) -> bytes:
    table = pa.table({name: kind(pa.array(column)) for name, column in columns(rows).items()})
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


def texts_as(kind: pa.DataType) -> Callable[[pa.Array], pa.Array]:
    return lambda column: column.cast(kind) if pa.types.is_string(column.type) else column


def encoded(column: pa.Array) -> pa.Array:
    return column if pa.types.is_null(column.type) else pc.dictionary_encode(column)


def lines(rows: Rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def frame(rows: Rows) -> pd.DataFrame:
    return pd.DataFrame(rows)


WRITERS: Mapping[str, Write] = {
    "comma.csv": lambda rows: separated(rows, ","),
    "spaces.csv": lambda rows: separated(rows, ",", gap=" "),
    "semicolon.csv": lambda rows: separated(rows, ";"),
    "tab.csv": lambda rows: separated(rows, "\t"),
    "tab.tsv": lambda rows: separated(rows, "\t"),
    "bom.csv": lambda rows: separated(rows, ",", encoding="utf-8-sig"),
    "excel.csv": lambda rows: separated(rows, "\t", encoding="utf-16"),
    "declared.csv": lambda rows: b"sep=;\r\n" + separated(rows, ";"),
    "records.json": lambda rows: json.dumps(rows).encode(),
    "records.jsonl": lambda rows: json.dumps(rows, indent=1, ensure_ascii=False).encode(),
    "lines.jsonl": lines,
    "lines.json": lines,
    "utf16.jsonl": lambda rows: lines(rows).decode().encode("utf-16"),
    "pretty.jsonl": lambda rows: "\n".join(json.dumps(row, indent=2) for row in rows).encode(),
    "columns.json": lambda rows: json.dumps(by_column(rows)).encode(),
    "lists.json": lambda rows: json.dumps(columns(rows)).encode(),
    "split.json": lambda rows: json.dumps(split(rows)).encode(),
    "wrapped.json": lambda rows: json.dumps({"info": {"version": 1}, "data": rows}).encode(),
    "plain.parquet": parquet,
    "large.parquet": lambda rows: parquet(rows, texts_as(pa.large_string())),
    "view.parquet": lambda rows: parquet(rows, texts_as(pa.string_view())),
    "bytes.parquet": lambda rows: parquet(rows, texts_as(pa.binary())),
    "dictionary.parquet": lambda rows: parquet(rows, encoded),
    "pandas.csv": lambda rows: frame(rows).to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC).encode(),
    "pandas-columns.json": lambda rows: frame(rows).to_json(double_precision=15).encode(),
    "pandas-split.json": lambda rows: frame(rows).to_json(orient="split").encode(),
    "pandas-table.json": lambda rows: frame(rows).to_json(orient="table").encode(),
    "pandas-lines.jsonl": lambda rows: frame(rows).to_json(orient="records", lines=True).encode(),
    "pandas.parquet": lambda rows: frame(rows).to_parquet(),
}


def written(folder: Path, name: str, rows: Rows) -> str:
    path = folder / name
    path.write_bytes(WRITERS[name](rows))
    return str(path)
