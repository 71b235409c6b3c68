"""Work in batches as large as memory allows, without knowing beforehand how large that is."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def in_halves(work: Callable[[Sequence[T]], list[R]], items: Sequence[T], alone: Callable[[T], R]) -> list[R]:
    """Run `work` over items; where memory runs out, over its halves; `alone` says what becomes of one that never fits.

    The retry stands outside the handler: inside it, the traceback would keep the failed batch alive.
    """
    try:
        return work(items)
    except torch.OutOfMemoryError:
        pass
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(items) == 1:
        return [alone(items[0])]
    middle = len(items) // 2
    return in_halves(work, items[:middle], alone) + in_halves(work, items[middle:], alone)
