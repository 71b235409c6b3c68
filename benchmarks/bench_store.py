"""The store beside raw pyarrow in one run: write, sequential read, one look-up, and "nothing to do" over 10,000 videos.

python -m benchmarks.bench_store [--entries 512] [--tokens 256] [--width 1024] [--videos 10000]
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.machine import describe
from pipeline.parquet import open_parquet
from pipeline.store import TokenStore
from tests.tables import SPEC, corpus, encoded, row

UNIT = 128


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__)
    for name, default in (("entries", 512), ("tokens", 256), ("width", 1024), ("videos", 10_000)):
        flags.add_argument(f"--{name}", type=int, default=default)
    chosen = flags.parse_args()
    print(describe())
    units = [
        encoded([row(f"v{at:06}", tokens=chosen.tokens, width=chosen.width) for at in range(start, start + UNIT)])
        for start in range(0, chosen.entries, UNIT)
    ]
    megabytes = sum(table["features"].nbytes for table in units) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        store = TokenStore.create(f"{folder}/store", SPEC)
        write_s = timed(lambda: [store.commit(unit) for unit in units])
        store = TokenStore.open(f"{folder}/store")
        read_s = timed(lambda: [store.read(name) for name in store.ids()])
        raw_write_s, raw_read_s = raw(Path(folder), units)
        names = np.random.default_rng(0).choice(store.ids(), 200)
        each_ms = [1000 * timed(lambda name=name: store.read(name)) for name in names]
        print(f"payload {megabytes:.0f} MB in {chosen.entries} entries")
        print(f"write      {megabytes / write_s:8.0f} MB/s   raw pyarrow {megabytes / raw_write_s:8.0f} MB/s")
        print(f"read all   {megabytes / read_s:8.0f} MB/s   raw pyarrow {megabytes / raw_read_s:8.0f} MB/s")
        print(f"look-up    p50 {statistics.median(each_ms):.2f} ms, p99 {sorted(each_ms)[int(len(each_ms) * 0.99)]:.2f} ms")
        place = store._place(store.index.get(str(names[0])) or {})
        entry = store.read(str(names[0]))
        print(f"bytes read for one entry / its columns: {place.length / columns_bytes(entry):.3f}")
    with tempfile.TemporaryDirectory() as folder:
        nothing_to_do(folder, chosen.videos)


def columns_bytes(entry: Any) -> int:
    parts = (entry.features, entry.frame, entry.anchor, entry.kind, entry.size, entry.position)
    return sum(part.nbytes for part in parts)


def raw(folder: Path, units: list[pa.Table]) -> tuple[float, float]:
    """The floor: one binary column, written with fsync as the store does and read back, no digest, no index."""
    tables = [pa.table({"features": unit["features"]}) for unit in units]

    def write() -> None:
        for number, table in enumerate(tables):
            with (folder / f"{number}.parquet").open("wb") as file:
                pq.write_table(table, file, compression="NONE", use_dictionary=False, write_statistics=False, row_group_size=1)
                file.flush()
                os.fsync(file.fileno())

    def read() -> None:
        for number in range(len(tables)):
            open_parquet(folder / f"{number}.parquet").read(use_threads=False)

    return timed(write), timed(read)


def nothing_to_do(folder: str, videos: int) -> None:
    """Commit small entries, then time a fresh open and the anti-join of the whole corpus."""
    store = TokenStore.create(folder, SPEC)
    names = [f"v{number:06}" for number in range(videos)]
    for start in range(0, videos, 256):
        store.commit(encoded([row(name, tokens=1, width=4) for name in names[start : start + 256]]))
    asked = corpus(*names)
    began = time.perf_counter()
    opened = TokenStore.open(folder)
    open_s = time.perf_counter() - began
    left = opened.missing(asked).num_rows
    print(f"open {videos} entries {open_s:.2f} s; nothing to do ({left} missing) {time.perf_counter() - began:.2f} s")


if __name__ == "__main__":
    main()
