"""Index rows held small: video ids open for search, all other columns compressed, a thousand rows at a time.

Digests, URIs and hints make a row of some 400 bytes; sorted by video they compress to about a third of that, whatever
storage they come from.
"""

from bisect import bisect_left
from functools import lru_cache
from typing import Any

import pyarrow as pa

from pipeline.schema import INDEX

ROWS_PER_BLOCK = 1024
"""Few enough to be unpacked for one look-up in a fraction of a millisecond, and enough that packing costs little."""
END_BYTES = 8
"""What ends a stream of Arrow's; the blocks here share one beginning and go without an end."""
_WRITE = pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False)
_READ = pa.ipc.IpcReadOptions(use_threads=False)
_REST = pa.schema([column for column in INDEX if column.name != "video_id"])


class PackedRows:
    """Rows of `schema.INDEX`, one per video. They must come sorted by video."""

    def __init__(self, rows: pa.Table) -> None:
        self.ids = _tight(rows["video_id"])
        rest = rows.select(_REST.names).combine_chunks()
        self.blocks = [_pack(rest.slice(start, ROWS_PER_BLOCK)) for start in range(0, rows.num_rows, ROWS_PER_BLOCK)]
        self.block = lru_cache(maxsize=2)(lambda number: _unpack(self.blocks[number]))

    def __len__(self) -> int:
        return len(self.ids)

    def get(self, video_id: str) -> dict[str, Any] | None:
        """Return the row of a video, or None."""
        at = bisect_left(_Ids(self.ids), video_id)
        if at == len(self.ids) or self.ids[at].as_py() != video_id:
            return None
        block = self.block(at // ROWS_PER_BLOCK)
        return {"video_id": video_id, **block.slice(at % ROWS_PER_BLOCK, 1).to_pylist()[0]}

    def table(self) -> pa.Table:
        """Return all rows."""
        rest = pa.Table.from_batches([_unpack(block) for block in self.blocks], schema=_REST)
        return rest.add_column(0, INDEX.field("video_id"), [self.ids]).cast(INDEX)


class _Ids:
    """What bisection needs of a list, over an Arrow array."""

    def __init__(self, ids: pa.StringArray) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, at: int) -> str:
        text: str = self.ids[at].as_py()
        return text


def _tight(ids: pa.ChunkedArray) -> pa.StringArray:
    """Return the ids in buffers of just their size: what a filter leaves may be twice as large."""
    whole = pa.concat_arrays([pa.array([], pa.string()), *ids.chunks])
    sink = _stream(pa.RecordBatch.from_arrays([whole], names=["video_id"]), None)
    return pa.ipc.open_stream(pa.py_buffer(sink)).read_all()["video_id"].combine_chunks()


def _stream(batch: pa.RecordBatch, options: pa.ipc.IpcWriteOptions | None) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def _head() -> bytes:
    sink = pa.BufferOutputStream()
    pa.ipc.new_stream(sink, _REST, options=_WRITE).close()
    return sink.getvalue().to_pybytes()[:-END_BYTES]


_HEAD = _head()


def _pack(rows: pa.Table) -> bytes:
    batch = pa.RecordBatch.from_arrays([column.combine_chunks() for column in rows.columns], schema=_REST)
    return _stream(batch, _WRITE)[len(_HEAD) : -END_BYTES]


def _unpack(block: bytes) -> pa.RecordBatch:
    return pa.ipc.open_stream(pa.py_buffer(_HEAD + block), options=_READ).read_next_batch()
