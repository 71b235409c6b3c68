"""Work in batches as large as memory allows: a first guess from what is free, and halves where it was too large."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

SHARE = 0.6
"""Of the free memory of a GPU that a batch may take."""
ON_CPU = 16384
"""Positions of a batch on the CPU: beyond this the key-value cache only grows, speed does not."""


def in_halves(
    work: Callable[[Sequence[T]], list[R]],
    items: Sequence[T],
    alone: Callable[[T], R],
    too_large: Callable[[], None] = lambda: None,
) -> list[R]:
    """Run `work` over items; where memory runs out, over its halves; `alone` says what becomes of one that never fits.

    `too_large` is called each time memory ran out, so that later batches can be smaller. The retry stands outside the
    handler: inside it, the traceback would keep the failed batch alive.
    """
    try:
        return work(items)
    except torch.OutOfMemoryError:
        pass
    too_large()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(items) == 1:
        return [alone(items[0])]
    middle = len(items) // 2
    return in_halves(work, items[:middle], alone, too_large) + in_halves(work, items[middle:], alone, too_large)


def batch_tokens(model: Any) -> int:
    """Return how many positions a batch may hold on the model's device. Any: the classes of transformers are untyped.

    A position costs its keys and values twice, once for the prefix and once in a row that copies it, and while it is read the
    hidden and intermediate states of one block.
    """
    if model.device.type != "cuda":
        return ON_CPU
    text = model.config.text_config
    width = text.hidden_size // text.num_attention_heads
    cached = 2 * text.num_hidden_layers * text.num_key_value_heads * width
    passing = 6 * text.hidden_size + 3 * text.intermediate_size
    free, _ = torch.cuda.mem_get_info(model.device)
    return max(1, int(SHARE * free / (model.dtype.itemsize * (2 * cached + passing))))
