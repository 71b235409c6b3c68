"""The long version: `python -m tests.faults`. Prints what each fault did and what was true afterwards; exit 1 if it was not."""

import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from tests import s3
from tests.faults import faults, storage
from tests.faults.faults import Outcome
from tests.faults.nodes import Nodes
from tests.faults.runs import Place, place
from tests.ports import free_ports

SHARE = 0.05
COLUMNS = (
    "fault", "struck", "kills", "runs", "good", "committed", "failed", "lost", "strange", "doubled", "changed", "unread",
    "untold", "orphans", "twice", "s",
)  # fmt: skip
SMALL_STORE = 80 << 20
Fault = Callable[[Path], Outcome]


def main() -> int:
    """Run the faults whose name contains one of the arguments, or all of them."""
    wanted = sys.argv[1:]
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS), flush=True)
    bad, kills, videos = [], 0, 0
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        for name, group in GROUPS.items():
            if wanted and not any(word in name for word in wanted):
                continue
            for outcome, seconds in _struck(name, group, Path(folder), bad):
                kills, videos = kills + outcome.kills, videos + outcome.found.good
                print(_line(outcome, seconds), flush=True)
                if not outcome.ok:
                    bad.append(outcome.fault)
    print(f"\n{kills} kills, {videos} good videos; " + (f"NOT AS PROMISED: {', '.join(bad)}" if bad else "all as promised"))
    return int(bool(bad))


def _struck(
    name: str, group: Callable[[Path], Iterator[Fault]], folder: Path, bad: list[str]
) -> Iterator[tuple[Outcome, float]]:
    try:
        for number, fault in enumerate(group(folder / name)):
            began = time.monotonic()
            try:
                yield fault(folder / name / str(number)), time.monotonic() - began
            except Exception:
                traceback.print_exc()
                bad.append(f"{name} {number}")
    except Exception:
        traceback.print_exc()
        bad.append(name)


def _line(outcome: Outcome, seconds: float) -> str:
    found = outcome.found
    cells = (
        outcome.fault, outcome.harm, outcome.kills, len(outcome.runs), found.good, found.committed, found.failed, found.lost,
        found.strange, found.doubled, found.changed, found.unread, found.untold, outcome.orphans, found.again, round(seconds),
    )  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def _processes(_: Path) -> Iterator[Fault]:
    yield lambda folder: faults.decode_children(folder, videos=150, kills=27)
    yield lambda folder: faults.drivers(folder, videos=100, kills=9)
    yield lambda folder: faults.terminated(folder, videos=40, times=2)
    yield lambda folder: faults.two_at_once(folder, videos=40)


def _storage(base: Path) -> Iterator[Fault]:
    yield lambda folder: storage.disk_full(folder, videos=100, size_kb=800)
    with s3.server(base / "s3") as port:
        for seed, name in enumerate(storage.FAULTS):
            yield lambda folder, seed=seed, name=name: storage.faltering(
                folder, port=port, videos=30, shares={name: SHARE}, seed=seed
            )
        every = dict.fromkeys(storage.FAULTS, SHARE)
        yield lambda folder: storage.faltering(folder, port=port, videos=30, shares=every)
        yield lambda folder: storage.gone(folder, port=port, videos=30)


def _ray(_: Path) -> Iterator[Fault]:
    with place() as where, Nodes(where) as nodes:
        yield lambda folder: faults.workers(folder, videos=120, kills=12, nodes=nodes, where=where)
        yield lambda folder: faults.lost_nodes(folder, videos=100, kills=4, nodes=nodes, where=where)
    yield lambda folder: faults.drivers(folder, videos=60, kills=2, runner="ray")


def _shared(_: Path) -> Iterator[Fault]:
    with place() as where, _small(where, *free_ports(1)) as nodes:
        yield lambda folder: storage.little_memory(folder, videos=200, nodes=nodes, where=where)
        yield lambda folder: faults.submitted_twice(folder, videos=40, nodes=nodes)


def _small(where: Place, port: int) -> Nodes:
    return Nodes(where, (3,), store_bytes=SMALL_STORE, dashboard_port=port)


GROUPS: dict[str, Callable[[Path], Iterator[Fault]]] = {
    "processes": _processes, "storage": _storage, "ray": _ray, "shared": _shared,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
