"""Run the stages in this process: tests, a laptop, or one machine with an accelerator and no Ray.

Decoding runs ahead in threads, each with a child process of its own; encoding keeps this thread, and while it goes on the
unit before is committed on another.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import pyarrow as pa

from pipeline.decode.stage import Decode
from pipeline.stage import Stage


def encode_units(
    todo: pa.Table,
    make_decode: Callable[[], Decode],
    encode: Stage,
    commit: Stage,
    *,
    decoders: int = 1,
    videos_per_step: int = 8,
    videos_at_once: int = 8,
    videos_per_unit: int = 64,
    stop: threading.Event | None = None,
) -> Iterator[pa.Table]:
    """Decode, encode and commit the rows of `schema.CORPUS`; yields rows of `schema.MANIFEST` unit by unit.

    A decoder takes `videos_per_step` at a time, `encode` at least `videos_at_once`, `commit` at least `videos_per_unit`.

    When `stop` is set, what is encoded by then is committed and the rest is left for the next run.
    """
    with ThreadPoolExecutor(1) as beside:
        committing: Future[pa.Table] | None = None
        clips = _decoded(_slices(todo, videos_per_step), make_decode, decoders, stop)
        for unit in _grouped(map(encode, _grouped(clips, videos_at_once)), videos_per_unit):
            if committing is not None:
                yield committing.result()
            committing = beside.submit(commit, unit)
        if committing is not None:
            yield committing.result()


def _grouped(parts: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Yield tables of at least so many rows, but for the last one."""
    waiting: list[pa.Table] = []
    for part in parts:
        waiting.append(part)
        if sum(table.num_rows for table in waiting) >= rows:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _slices(table: pa.Table, rows: int) -> Iterator[pa.Table]:
    return (table.slice(start, rows) for start in range(0, table.num_rows, rows))


def _decoded(
    parts: Iterable[pa.Table], make_decode: Callable[[], Decode], decoders: int, stop: threading.Event | None
) -> Iterator[pa.Table]:
    """Yield decoded parts in order, a few ahead of the consumer."""
    with ExitStack() as stack:
        own = threading.local()

        def decode(part: pa.Table) -> pa.Table:
            if not hasattr(own, "stage"):
                own.stage = stack.enter_context(make_decode())
            return own.stage(part)

        threads = stack.enter_context(ThreadPoolExecutor(decoders))
        ahead: deque[Future[pa.Table]] = deque()
        for part in parts:
            if stop is not None and stop.is_set():
                break
            ahead.append(threads.submit(decode, part))
            if len(ahead) > decoders + 1:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
