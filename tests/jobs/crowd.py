"""More jobs than may run at a time, at once, on one real Ray of two CPUs: `python -m tests.jobs.crowd FOLDER`."""

import json
import logging
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import ray

from jobs.runtime.cluster import JOBS, ClusterConfig, blocks, cluster, share, source, through, turn

CONFIG = ClusterConfig(address="this one")
"""Not looked at, for Ray runs already; but no private cluster."""
POOLS = 2
WAIT_S = 900.0
A_WHILE_S = 5.0
"""In which a job that does not wait its turn would go on."""


class Heard(logging.Handler):
    """Knows when a job has said that it waits."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        """Look at a line."""
        if "waiting for one of them" in record.getMessage():
            self.waits.set()


class Stay:
    """Stage. Says that it is there, and passes nothing on before everybody is."""

    def __init__(self, folder: str, name: str) -> None:
        self.folder = Path(folder)
        (self.folder / name).touch()

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Return the rows."""
        while not (self.folder / "go").exists():
            time.sleep(0.05)
        return rows


def job(folder: str, name: str, told: dict[str, tuple[bool, int]]) -> None:
    """Send a few rows through pools of one actor each."""
    with cluster(CONFIG) as cpus, turn(CONFIG) as waited:
        data = source(blocks(pa.table({"row": range(4)}), 1))
        for pool in range(POOLS):
            data = through(data, Stay, (folder, f"{name}-{pool}"), workers=1, cpus=share(cpus, POOLS), batch=1)
        batches = data.iter_batches(batch_format="pyarrow", batch_size=None, prefetch_batches=0)
        told[name] = (waited, sum(batch.num_rows for batch in batches))


def main(folder: str) -> None:
    """Start all jobs but one of those that may run, then that one, when the others hold their CPUs; then one too many."""
    heard = Heard()
    logging.basicConfig(level=logging.INFO, handlers=[logging.StreamHandler(sys.stderr), heard])
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False)
    told: dict[str, tuple[bool, int]] = {}
    threads = [threading.Thread(target=job, args=(folder, f"job{at}", told), daemon=True) for at in range(JOBS + 1)]
    end = time.monotonic() + WAIT_S
    for thread in threads[: JOBS - 1]:
        thread.start()
    complete(folder, JOBS - 1, end)
    threads[JOBS - 1].start()
    up = complete(folder, JOBS, end)
    threads[JOBS].start()
    heard.waits.wait(max(0.0, end - time.monotonic()))
    threads[JOBS].join(A_WHILE_S)
    late = present(folder) - up
    (Path(folder) / "go").touch()
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    sys.stdout.write(json.dumps({"up": len(up), "late": sorted(late), "told": told}) + "\n")
    sys.stdout.flush()
    ray.shutdown()


def complete(folder: str, jobs: int, end: float) -> set[str]:
    """Return the pools that are up, once those of so many jobs are."""
    while len(up := present(folder)) < jobs * POOLS and time.monotonic() < end:
        time.sleep(0.1)
    return up


def present(folder: str) -> set[str]:
    """Return the pools that are up."""
    return {path.name for path in Path(folder).iterdir()}


if __name__ == "__main__":
    main(sys.argv[1])
