"""Small Parquet files as bytes.

Everything is read on the calling thread: arrow's own thread pool and torch's, in one process, abort now and then when the
interpreter exits (pyarrow 26.0, torch 2.13: about every second run), and exit codes are part of what a job promises.
"""

from io import BytesIO
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def to_parquet(table: pa.Table) -> bytes:
    """Return a table as the bytes of one Parquet file; equal tables give equal bytes."""
    sink = BytesIO()
    pq.write_table(table.combine_chunks(), sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def from_parquet(content: bytes) -> pa.Table:
    """Return the table in the bytes of a Parquet file. Raises pyarrow's errors, OSError where a checksum differs."""
    return open_parquet(pa.BufferReader(content)).read(use_threads=False)


def open_parquet(file: Any, metadata: Any = None) -> pq.ParquetFile:
    """Return a reader that checks page checksums and starts no thread. Any: files and metadata of pyarrow are untyped."""
    return pq.ParquetFile(file, metadata=metadata, page_checksum_verification=True, pre_buffer=False)
