"""Kill processes of a run at random moments. Only those that carry the run's mark in their environment are ever touched."""

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from random import Random

MARK = "FRAMEFOLD_FAULTS_RUN"
"""Environment variable that a run and all its descendants carry."""
DECODE_CHILD = r"pipeline\.decode\.worker"
DECODER, ENCODER, COMMITTER = r"ray::.*Decode\b", r"ray::.*Encode\b", r"ray::.*Commit\b"
"""What the command lines of the processes contain; Ray names its workers after the stage."""
STAGES = "|".join((DECODE_CHILD, DECODER, ENCODER, COMMITTER))


def processes(mark: str, pattern: str = "", but: Collection[int] = ()) -> list[int]:
    """Return the live processes of a run whose command line matches, sorted."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) not in but:
            with contextlib.suppress(OSError):
                if wanted in (folder / "environ").read_bytes().split(b"\0") and re.search(pattern, _command(folder)):
                    found.append(int(folder.name))
    return sorted(found)


def _command(folder: Path) -> str:
    return (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


def end_all(mark: str) -> int:
    """Kill what a run has left behind; returns how many processes that were."""
    count = 0
    for _ in range(5):
        left = processes(mark, but={os.getpid()})
        for pid in left:
            kill(pid)
        count += len(left)
        if not left:
            break
        time.sleep(0.1)
    return count


def kill(pid: int, number: int = signal.SIGKILL) -> bool:
    """Send a signal; returns whether the process was there."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def held(pid: int, hold_s: float, number: int = signal.SIGKILL) -> bool:
    """Stop a process, so that it gets work and does not do it, then send it a signal. Returns whether it was there."""
    if hold_s:
        kill(pid, signal.SIGSTOP)
        time.sleep(hold_s)
    there = kill(pid, number)
    kill(pid, signal.SIGCONT)
    return there


class Killer:
    """Kills one process that matches at each of some random moments, while in a `with` statement, and counts them.

    Between two kills `progress` must have changed, so that a run that lives through them comes to its end.
    """

    def __init__(
        self, mark: str, pattern: str, progress: Callable[[], int], *, most: int, within_s: float = 1.0, hold_s: float = 0,
        seed: int = 0,
    ) -> None:  # fmt: skip
        """`hold_s`: stop the process for so long before it is killed, so that it dies with work in hand."""
        self.mark, self.pattern, self.progress, self.most = mark, pattern, progress, most
        self.within_s, self.hold_s = within_s, hold_s
        self.random = Random(seed)
        self.kills = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Killer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        before = -1
        while self.kills < self.most and not self._stop.is_set():
            victims = processes(self.mark, self.pattern)
            if victims and self.progress() > before:
                self._stop.wait(self.random.uniform(0, self.within_s))
                if held(self.random.choice(victims), self.hold_s):
                    before = self.progress()
                    self.kills += 1
            self._stop.wait(0.1)


def commands(mark: str) -> Iterator[str]:
    """Yield pid and command line of each process of a run, for a person who looks for what is left."""
    for pid in processes(mark):
        with contextlib.suppress(OSError):
            yield f"{pid} {_command(Path('/proc') / str(pid))}"
