"""Small Parquet files as bytes.

Everything is read on the calling thread: arrow's own thread pool and torch's, in one process, abort now and then when the
interpreter exits (pyarrow 26.0, torch 2.13: about every second run), and exit codes are part of what a job promises.
"""

from collections.abc import Collection
from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def to_parquet(table: pa.Table, distinct: Collection[str] | None = None) -> bytes:
    """Return a table as the bytes of one Parquet file; equal tables give equal bytes.

    Where the columns are named whose values are mostly `distinct`, just these are packed, and just the others go through
    dictionaries, without statistics: a table of few rows is then smaller and takes half the time to read.
    """
    options: dict[str, Any] = {"compression": "zstd"}
    if distinct is not None:
        options = {
            "compression": {name: "ZSTD" if name in distinct else "NONE" for name in table.column_names},
            "use_dictionary": [name for name in table.column_names if name not in distinct],
            "write_statistics": False,
        }
    sink = BytesIO()
    pq.write_table(table.combine_chunks(), sink, write_page_checksum=True, **options)
    return sink.getvalue()


def from_parquet(content: bytes) -> pa.Table:
    """Return the table in the bytes of a Parquet file. Raises pyarrow's errors, OSError where a checksum differs."""
    return open_parquet(pa.BufferReader(content)).read(use_threads=False)


def open_parquet(file: Any, metadata: Any = None) -> pq.ParquetFile:
    """Return a reader that checks page checksums and starts no thread. Any: files and metadata of pyarrow are untyped."""
    return pq.ParquetFile(file, metadata=metadata, page_checksum_verification=True, pre_buffer=False)
