"""The store beside raw pyarrow in one run: write, sequential read, one look-up, and how it grows: open, memory, second run."""

import gc
import hashlib
import os
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.bench.machine import describe, say
from jobs.runtime.launch import Report, launch
from pipeline.errors import check_at_least_one
from pipeline.schema import CORPUS, ENCODED
from pipeline.storage.parquet_io import open_parquet
from pipeline.store.token_store import TokenStore

UNIT = 128
SPEC: dict[str, Any] = {"schema_version": 1, "reducer": {"name": "none", "version": 1}, "tower": {"weights_sha256": "none"}}


@dataclass(frozen=True, kw_only=True)
class StoreBench:
    """Time the token store on synthetic entries, beside raw pyarrow."""

    entries: int = 512
    """Entries to write and read."""
    tokens: int = 256
    """Tokens of each."""
    width: int = 1024
    """Values of each token."""
    videos: int = 10_000
    """Videos of the store that is opened, and of the look for what is left to do."""
    videos_per_unit: int = 64
    """How many of these are committed together, as `framefold encode` has it: so many rows has a fragment."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "entries", "tokens", "width", "videos", "videos_per_unit")


def timed(work: Callable[[], Any]) -> float:
    """Return the seconds that some work took."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def corpus(names: Sequence[str]) -> pa.Table:
    """Return a corpus of these videos."""
    rows = [{"video_id": name, "uri": f"/videos/{name}.mp4", "source_hint": hint(name)} for name in names]
    return pa.Table.from_pylist(rows, schema=CORPUS)


def digest(name: str) -> str:
    """Return what stands for the SHA-256 of a video: as hard to compress as a real one."""
    return hashlib.sha256(name.encode()).hexdigest()


def hint(name: str) -> str:
    """Return a source hint as local disk gives it, another for each video."""
    drawn = int(digest(name)[:16], 16)
    return f'{{"mtime":{1_763_000_000_000_000_000 + drawn % 10**15},"size":{drawn % 10**7}}}'


def encoded(names: Sequence[str], tokens: int, width: int) -> pa.Table:
    """Return videos as the encode stage gives them, with seeded content."""
    return pa.Table.from_pylist([_row(name, tokens, width) for name in names], schema=ENCODED)


def _row(name: str, tokens: int, width: int) -> dict[str, Any]:
    random = np.random.default_rng(list(name.encode()))
    return {
        "video_id": name,
        "uri": f"/videos/{name}.mp4",
        "source_hint": hint(name),
        "features": random.normal(size=(tokens, width)).astype("<f2").tobytes(),
        "shape": [tokens, width],
        "dtype": "float16",
        "frame": np.arange(tokens, dtype="<i2").tobytes(),
        "anchor": np.arange(tokens, dtype="<i4").tobytes(),
        "kind": np.zeros(tokens, dtype=np.uint8).tobytes(),
        "size": np.ones(tokens, dtype="<f4").tobytes(),
        "position": np.zeros((tokens, 3), dtype="<f4").tobytes(),
        "grid": [8, 16, 16],
        "timestamps_s": [0.0, 0.5],
        "decoder": "pyav",
        "source_sha256": digest(name),
        "source_bytes": int(digest(name)[:16], 16) % 10**7,
        "substituted_frames": 0,
        "error_class": None,
        "error": None,
    }


def run(job: StoreBench) -> Report:
    """Print the tables."""
    say(describe())
    throughput(job)
    with tempfile.TemporaryDirectory() as folder:
        growth(folder, job.videos, job.videos_per_unit)
    return {"silent": True}


def throughput(job: StoreBench) -> None:
    """Write and read entries, and look some up."""
    names = [f"v{at:06}" for at in range(job.entries)]
    units = [encoded(names[start : start + UNIT], job.tokens, job.width) for start in range(0, job.entries, UNIT)]
    megabytes = sum(table["features"].nbytes for table in units) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        TokenStore.create(f"{folder}/warm", SPEC).commit(units[0])  # memory that the later ones find allocated
        store = TokenStore.create(f"{folder}/store", SPEC)
        write_s = timed(lambda: [store.commit(unit) for unit in units])
        store = TokenStore.open(f"{folder}/store")
        read_s = timed(lambda: [store.read(name) for name in store.ids()])
        raw_write_s, raw_read_s = raw(Path(folder), units)
        say(f"payload {megabytes:.0f} MB in {job.entries} entries")
        say(f"write      {megabytes / write_s:8.0f} MB/s   raw pyarrow {megabytes / raw_write_s:8.0f} MB/s")
        say(f"read all   {megabytes / read_s:8.0f} MB/s   raw pyarrow {megabytes / raw_read_s:8.0f} MB/s")
        look_up(store)


def look_up(store: TokenStore) -> None:
    """Read single entries at random."""
    names = np.random.default_rng(0).choice(store.ids(), 200)
    each_ms = sorted(1000 * timed(partial(store.read, str(name))) for name in names)
    say(f"look-up    p50 {statistics.median(each_ms):.2f} ms, p99 {each_ms[int(len(each_ms) * 0.99)]:.2f} ms")
    length = (store.index.get(str(names[0])) or {})["length"]
    say(f"bytes read for one entry / its columns: {length / columns_bytes(store.read(str(names[0]))):.3f}")


def columns_bytes(entry: Any) -> int:
    """Return the bytes of the token columns of an entry."""
    parts = (entry.features, entry.frame, entry.anchor, entry.kind, entry.size, entry.position)
    return sum(part.nbytes for part in parts)


def raw(folder: Path, units: list[pa.Table]) -> tuple[float, float]:
    """Return seconds to write and read the floor: one binary column, fsynced as the store does, no digest, no index."""
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


def growth(folder: str, videos: int, unit: int) -> None:
    """Commit small entries, then open the store and ask what of the whole corpus is left, beside reading the same fragments."""
    store = TokenStore.create(folder, SPEC)
    names = [f"v{number:06}" for number in range(videos)]
    for start in range(0, videos, unit):
        store.commit(encoded(names[start : start + unit], 1, 4))
    asked = corpus(names)
    fragments = sorted(Path(store.index.folder).glob("*.parquet"))
    open_s, raw_s = timed(lambda: TokenStore.open(folder)), timed(lambda: listed(fragments))
    left_s = timed(lambda: TokenStore.open(folder).missing(asked))
    say(f"{videos} entries in {len(fragments)} fragments")
    say(f"open       {open_s:8.2f} s      raw pyarrow {raw_s:8.2f} s")
    held, raw_held = held_bytes(lambda: TokenStore.open(folder)), held_bytes(lambda: listed(fragments))
    say(f"memory     {held / videos:8.0f} bytes per entry, raw pyarrow {raw_held / videos:.0f}")
    say(f"open and find nothing to do ({TokenStore.open(folder).missing(asked).num_rows} missing) {left_s:.2f} s")
    look_up(TokenStore.open(folder))


def listed(fragments: list[Path]) -> pa.Table:
    """Return all rows of an index as pyarrow has them: no digest, no order, no look-up."""
    return pa.concat_tables([open_parquet(path).read(use_threads=False) for path in fragments])


def held_bytes(build: Callable[[], Any]) -> int:
    """Return the bytes that Arrow and Python hold more once something is built."""
    gc.collect()
    tracemalloc.start()
    before = pa.total_allocated_bytes() + tracemalloc.get_traced_memory()[0]
    built = build()
    gc.collect()
    held = pa.total_allocated_bytes() + tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    del built
    return held


def main(args: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    return launch(StoreBench, run, "framefold bench store", args)


if __name__ == "__main__":
    sys.exit(main())
