"""Two halves of the work on a batch, on one device: while a GPU begins the next batch, this one is finished beside it.

What a reducer does to a batch is hundreds of small kernels with the host in between. One after another they would leave a
GPU idle between two runs of the tower; beside the tower they take what it leaves free.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Batch = TypeVar("Batch")
Begun = TypeVar("Begun")
Done = TypeVar("Done")


class Overlap:
    """Begins batches on this thread and, on a GPU, finishes each on another thread and another stream; at most one waits."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def run(
        self, begin: Callable[[Batch], Begun], finish: Callable[[Begun], Done], batches: Iterable[Batch]
    ) -> Iterator[Done]:
        """Yield `finish(begin(batch))` of each batch, in order. What either raises is raised here."""
        if self.stream is None:
            yield from (finish(begin(batch)) for batch in batches)
            return
        with ThreadPoolExecutor(1, "finish") as beside:
            waiting: Future[Done] | None = None
            for batch in batches:
                begun = begin(batch)
                ready = torch.cuda.current_stream(self.stream.device).record_event()
                if waiting is not None:
                    yield waiting.result()
                waiting = beside.submit(self._aside, finish, begun, ready)
            if waiting is not None:
                yield waiting.result()

    def _aside(self, finish: Callable[[Begun], Done], begun: Begun, ready: torch.cuda.Event) -> Done:
        """Finish a batch once the GPU has begun it. Its memory goes back to the other stream only when all is read."""
        with torch.cuda.stream(self.stream):
            torch.cuda.current_stream().wait_event(ready)
            try:
                return finish(begun)
            finally:
                torch.cuda.current_stream().synchronize()
