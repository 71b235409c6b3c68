"""Key-value caches: with room for the answers, and of a conversation so far.

Shapes: V videos, B rows, P prefix columns, d width of a head.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

Buffers = tuple[Tensor, Tensor]
"""Keys and values of one block, (B, heads, C, d) each."""


def room_for(prefix: DynamicLayer, rows: int, columns: int) -> Buffers:
    """Allocate keys and values of one block, (rows, heads, columns, d) each, not filled."""
    _, heads, _, width = prefix.keys.shape
    return prefix.keys.new_empty(rows, heads, columns, width), prefix.values.new_empty(rows, heads, columns, width)


class RoomyLayer(DynamicLayer):  # type: ignore[misc]  # transformers is not typed for mypy
    """Keys and values of one block in a buffer with room for the answer: a step writes one column and copies nothing.

    DynamicLayer concatenates: every generated token would copy the whole prefix of every row.
    """

    def __init__(self, prefix: DynamicLayer, owner_B: Tensor, buffers: Buffers) -> None:
        """Copy the states of each row's video into the first P columns of the buffers."""
        super().__init__()
        self.lazy_initialization(prefix.keys, prefix.values)
        self.all_keys, self.all_values = buffers
        self.length: int = prefix.keys.shape[-2]
        for buffer, states in ((self.all_keys, prefix.keys), (self.all_values, prefix.values)):
            buffer[:, :, : self.length] = states if len(states) == 1 else states.index_select(0, owner_B)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> Buffers:
        """Write the new columns and return all that are filled."""
        end = self.length + key_states.shape[-2]
        self.all_keys[:, :, self.length : end] = key_states
        self.all_values[:, :, self.length : end] = value_states
        self.length = end
        return self.all_keys[:, :, :end], self.all_values[:, :, :end]

    def get_seq_length(self) -> int:
        """Return the columns filled so far."""
        return self.length


class FixedLayer(DynamicLayer):  # type: ignore[misc]  # transformers is not typed for mypy
    """Keys and values of one block whose shape never changes: a step writes column `at` and sees all C, masked."""

    def __init__(self, buffers: Buffers, at: Tensor) -> None:
        """`at` (1,) is the column to write; it stays on the device, so that a recorded step finds it there."""
        super().__init__()
        self.all_keys, self.all_values = buffers
        self.lazy_initialization(self.all_keys, self.all_values)
        self.at = at

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> Buffers:
        """Write one column and return all."""
        self.all_keys.index_copy_(2, self.at, key_states)
        self.all_values.index_copy_(2, self.at, value_states)
        return self.all_keys, self.all_values


@dataclass(kw_only=True)
class Seen:
    """What a conversation has read so far."""

    cache: Cache
    end: int
    """Position of the next id."""
    spoken: bool = False
    """A turn was read."""
