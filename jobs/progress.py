"""Progress that a person can read: one line every few seconds, on stderr."""

import logging
import time
from collections import Counter
from collections.abc import Callable

logger = logging.getLogger(__name__)


class Progress:
    """Counts what is done and says so at most every `every_s` seconds."""

    def __init__(self, what: str, total: int, every_s: float = 5.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.what = what
        self.total = total
        self.every_s = every_s
        self.clock = clock
        self.counts: Counter[str] = Counter()
        self.began = self.said = clock()

    def add(self, counts: Counter[str]) -> None:
        """Take in how many ended in which way."""
        self.counts += counts
        if self.clock() - self.said >= self.every_s or self.done == self.total:
            self.said = self.clock()
            logger.info("%s", self.line())

    @property
    def done(self) -> int:
        """Return how many ended, in whatever way."""
        return sum(self.counts.values())

    @property
    def seconds(self) -> float:
        """Return the time since the start."""
        return self.clock() - self.began

    @property
    def per_s(self) -> float:
        """Return how many ended per second so far."""
        return self.done / max(self.seconds, 1e-9)

    def report(self) -> dict[str, float]:
        """Return how many ended in which way, and the seconds that it took, for a job's report."""
        return {**dict(sorted(self.counts.items())), "seconds": round(self.seconds, 3)}

    def line(self) -> str:
        """Return done, failed, rate and the time that is left."""
        rate = self.per_s
        left = (self.total - self.done) / rate if rate else 0.0
        parts = [f"{self.what} {self.done}/{self.total}"]
        parts += [f"{count} {name}" for name, count in sorted(self.counts.items())]
        minutes, seconds = divmod(round(left), 60)
        return ", ".join([*parts, f"{rate:.2f}/s", f"{minutes}:{seconds:02d} left"])
