"""The faults: each starts the real command, does real harm, runs the same command again and checks the store."""

import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.faults.check import Found, check
from tests.faults.clips import make_clips
from tests.faults.killing import COMMITTER, DECODE_CHILD, DECODER, ENCODER, Killer, end_all, kill, processes
from tests.faults.nodes import Nodes
from tests.faults.runs import Ended, Job, Place, again, ended, fragments, place, wait_until
from tests.gate import gate


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a fault did and what is true afterwards."""

    fault: str
    harm: int
    """How often the fault struck: kills, spoiled requests, failed writes."""
    runs: Sequence[Ended]
    """Every run, the last one undisturbed; killed ones have no report."""
    found: Found
    kills: int = 0
    orphans: int = 0
    """Processes that a killed driver left running."""

    @property
    def ok(self) -> bool:
        """Tell whether the fault struck and the store is as it should be."""
        last = self.runs[-1]
        return self.harm > 0 and last.code == 0 and last.report["left"] == 0 and self.found.ok and not self.orphans


def decode_children(folder: Path, *, videos: int, kills: int, seed: int = 0) -> Outcome:
    """kill -9 of decoding processes, some of them while they start. The run ends after the last, and by itself."""
    clips = make_clips(folder / "clips", videos)
    with place() as where, gate(clips.folder) as corpus:
        job = Job(
            corpus=corpus.manifest(folder / "m.jsonl"), store=str(folder / "store"), words=("--decoders", "2"), unit=2
        )
        run, done = where.start(job), lambda: fragments(job.store)
        with Killer(where.mark, DECODE_CHILD, done, most=kills, within_s=0.3, hold_s=0.4, seed=seed) as killer:
            for number in range(kills):
                corpus.let(videos * (number + 1) // (kills + 1))
                wait_until(lambda number=number: killer.kills > number, run)
            corpus.let()
            disturbed = ended(run)
    runs = [disturbed, again(job)]
    found = check(job.store, clips)
    return Outcome(fault="kill -9 decode child", harm=killer.kills, kills=killer.kills, runs=runs, found=found)


def drivers(folder: Path, *, videos: int, kills: int, seed: int = 0, runner: str = "local") -> Outcome:
    """kill -9 of the driver alone, at a random moment after a unit of its own is committed. The rest comes in later runs."""
    clips, random = make_clips(folder / "clips", videos), Random(seed)
    runs, orphans, struck = [], 0, 0
    with place() as where, gate(clips.folder) as corpus:
        job = Job(corpus=corpus.manifest(folder / "m.jsonl"), store=str(folder / "store"), runner=runner, unit=2)
        for number in range(kills):
            corpus.let(videos * (number + 1) // (kills + 1))
            run, before = where.start(job), fragments(job.store)
            wait_until(lambda before=before: fragments(job.store) > before, run)
            time.sleep(random.uniform(0, 0.2))
            struck += run.poll() is None and kill(run.pid)
            runs.append(ended(run))
            orphans += where.idle()
            end_all(where.mark)
        corpus.let()
        runs.append(where.run(job) if runner == "ray" else again(job))
    found = check(job.store, clips)
    return Outcome(fault=f"kill -9 driver ({runner})", harm=struck, kills=struck, runs=runs, found=found, orphans=orphans)


def terminated(folder: Path, *, videos: int, times: int = 1) -> Outcome:
    """SIGTERM to the whole process group, as service managers and Ctrl-C send it. The last videos come after it."""
    clips = make_clips(folder / "clips", videos)
    runs, struck = [], 0
    with place() as where, gate(clips.folder) as corpus:
        job = Job(corpus=corpus.manifest(folder / "m.jsonl"), store=str(folder / "store"), unit=2)
        for number in range(times):
            corpus.let(videos * (2 * number + 1) // (2 * times))
            run, before = where.start(job), fragments(job.store)
            wait_until(lambda before=before: fragments(job.store) > before, run)
            children = processes(where.mark, DECODE_CHILD)
            for pid in children:
                kill(pid, signal.SIGSTOP)  # so that they have a video in hand
            time.sleep(0.5)
            os.killpg(run.pid, signal.SIGTERM)
            for pid in children:
                kill(pid, signal.SIGCONT)
            corpus.let()
            runs.append(ended(run))
            struck += runs[-1].code == 3 and "SIGTERM" in runs[-1].said
        runs.append(again(job))
    return Outcome(fault="SIGTERM", harm=struck, runs=runs, found=check(job.store, clips))


def workers(folder: Path, *, videos: int, kills: int, nodes: Nodes, where: Place, seed: int = 0) -> Outcome:
    """kill -9 of Ray workers that decode, encode or commit."""
    clips = make_clips(folder / "clips", videos)
    job = Job(corpus=str(clips.folder), store=str(folder / "store"), runner="ray", words=("--address", nodes.address))
    run = where.start(job)
    pattern = "|".join((DECODER, ENCODER, COMMITTER))
    with Killer(where.mark, pattern, lambda: fragments(job.store), most=kills, within_s=0.3, seed=seed) as killer:
        disturbed = ended(run)
    runs = [disturbed, again(job)]
    return Outcome(
        fault="kill -9 Ray worker", harm=killer.kills, kills=killer.kills, runs=runs, found=check(job.store, clips)
    )


def lost_nodes(folder: Path, *, videos: int, kills: int, nodes: Nodes, where: Place, seed: int = 0) -> Outcome:
    """A node's processes all killed at once, and a new node some seconds later, as an autoscaler would bring it."""
    clips, random = make_clips(folder / "clips", videos), Random(seed)
    job = Job(corpus=str(clips.folder), store=str(folder / "store"), runner="ray", words=("--address", nodes.address))
    run, struck = where.start(job), 0
    for _ in range(kills):
        before = fragments(job.store)
        if not wait_until(lambda before=before: fragments(job.store) > before, run):
            break
        time.sleep(random.uniform(0, 0.3))
        nodes.kill(random.randrange(2))
        struck += 1
        nodes.add()
    runs = [ended(run), again(job)]
    return Outcome(fault="kill -9 Ray node", harm=struck, kills=struck, runs=runs, found=check(job.store, clips))


def two_at_once(folder: Path, *, videos: int, runner: str = "local", words: tuple[str, ...] = ()) -> Outcome:
    """The same command twice at the same time."""
    clips = make_clips(folder / "clips", videos)
    job = Job(corpus=str(clips.folder), store=str(folder / "store"), runner=runner, unit=2, words=words)
    with place() as where:
        started = [where.start(job), where.start(job)]
        runs = [*map(ended, started), again(job)]
    assert [run.code for run in runs] == [0, 0, 0], [run.said[-500:] for run in runs]
    return Outcome(fault=f"two runs at once ({runner})", harm=1, runs=runs, found=check(job.store, clips))


def submitted_twice(folder: Path, *, videos: int, nodes: Nodes) -> Outcome:
    """`ray job submit` of the same job twice, at the same time."""
    clips = make_clips(folder / "clips", videos)
    job = Job(corpus=str(clips.folder), store=str(folder / "store"), runner="ray", unit=2)
    words = [sys.executable, "-m", "jobs.encode", *job.arguments[1:]]
    runs = [ended(run) for run in [nodes.submit(*words), nodes.submit(*words)]]
    assert [run.code for run in runs] == [0, 0], [run.said[-500:] for run in runs]
    return Outcome(fault="ray job submit twice", harm=1, runs=[*runs, again(job)], found=check(job.store, clips))
