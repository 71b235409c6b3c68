"""Seconds by name: what the parts of a stage took. Who runs the stage takes them after each table."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Watch:
    """Adds up seconds by name until they are taken; parts may run on several threads, and then overlap."""

    def __init__(self) -> None:
        self.spent: defaultdict[str, float] = defaultdict(float)
        self.lock = threading.Lock()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a block; one that raises counts for nothing."""
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        with self.lock:
            self.spent[name] += seconds

    def take(self) -> dict[str, float]:
        """Return the seconds since they were last taken."""
        with self.lock:
            found = dict(self.spent)
            self.spent.clear()
        return found
