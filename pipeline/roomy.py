"""Key-value caches: with room for the answers, and of a conversation so far.

Shapes: V videos, B rows, P prefix columns, d width of a head.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class RoomyLayer(DynamicLayer):  # type: ignore[misc]  # transformers is not typed for mypy
    """Keys and values of one block with room for the answer, so that a step writes one column and copies nothing.

    DynamicLayer concatenates: every generated token would copy the whole prefix of every row.
    """

    def __init__(self, prefix: DynamicLayer, owner_B: Tensor, room: int) -> None:
        super().__init__()
        self.lazy_initialization(prefix.keys, prefix.values)
        self.all_keys = _with_room(prefix.keys, owner_B, room)
        self.all_values = _with_room(prefix.values, owner_B, room)
        self.length: int = prefix.keys.shape[-2]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write the new columns and return all that are filled."""
        end = self.length + key_states.shape[-2]
        self.all_keys[:, :, self.length : end] = key_states
        self.all_values[:, :, self.length : end] = value_states
        self.length = end
        return self.all_keys[:, :, :end], self.all_values[:, :, :end]

    def get_seq_length(self) -> int:
        """Return the columns filled so far."""
        return self.length


def _with_room(states: Tensor, owner_B: Tensor, room: int) -> Tensor:
    """Copy the states (V, heads, P, d) of each row's video once, into a buffer of P + room columns."""
    videos, heads, columns, width = states.shape
    buffer = states.new_empty(len(owner_B), heads, columns + room, width)
    buffer[:, :, :columns] = states if videos == 1 else states.index_select(0, owner_B)
    return buffer


@dataclass(kw_only=True)
class Seen:
    """What a conversation has read so far."""

    cache: Cache
    end: int
    """Position of the next id."""
    spoken: bool = False
    """A turn was read."""
