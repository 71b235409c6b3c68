"""Progress: one line every few seconds, on stderr, for a person, and its numbers for a log that is JSON."""

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)
FAILED = frozenset({"failed", "without answer", "without reply"})
"""Ways to end that a job counts as failures."""


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
            logger.info("%s", self.line(), extra={"fields": self.fields()})

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

    @property
    def eta_s(self) -> float | None:
        """Return how long the rest will take at the rate so far; None while there is no rate."""
        return (self.total - self.done) / self.per_s if self.done else None

    def fields(self) -> dict[str, Any]:
        """Return what the line tells, as numbers."""
        return {
            "what": self.what,
            "done": self.done,
            "total": self.total,
            "failed": sum(count for name, count in self.counts.items() if name in FAILED),
            "counts": dict(sorted(self.counts.items())),
            "per_s": round(self.per_s, 3),
            "eta_s": None if self.eta_s is None else round(self.eta_s, 1),
            "seconds": round(self.seconds, 3),
        }

    def line(self) -> str:
        """Return done, failed, rate and the time that is left."""
        parts = [f"{self.what} {self.done}/{self.total}"]
        parts += [f"{count} {name}" for name, count in sorted(self.counts.items())]
        minutes, seconds = divmod(round(self.eta_s or 0), 60)
        return ", ".join([*parts, f"{self.per_s:.2f}/s", f"{minutes}:{seconds:02d} left"])
