"""How rows of a batch say their next token, again and again: with shapes that grow, or with fixed shapes that are recorded.

A step of a language model is hundreds of small kernels. A GPU can wait longer for the next launch than it works on the last
one; fixed shapes let all launches of a step be recorded once (a CUDA graph) and sent as one. On a CPU nothing waits.

Shapes: V videos of a batch, B rows, P prefix columns, L columns of the longest suffix, C columns of all, d width of a head.
"""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from pipeline.engines.kv_cache import Buffers, FixedLayer, RoomyLayer, room_for
from pipeline.errors import ConfigError
from pipeline.models.device import StepKind

logger = logging.getLogger(__name__)

Forward = Callable[[Tensor, Tensor | None, Tensor, Cache], Tensor]
"""Ids (B, L), mask (ones, zeros (B, C), or to be added (B, 1, L, C)), positions (B, L), keys and values to next ids (B,)."""

SHAPES = 64
"""Fixed shapes that torch.compile may meet in one process."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows that go on behind the prefixes of videos."""

    prefixes: Cache
    """Keys and values (V, heads, P, d) of each block."""
    owner: Tensor
    """(B,) the video that a row is about."""
    ids: Tensor
    """(B, L) of the suffixes, left-padded."""
    mask: Tensor
    """(B, P + L) 1 where a row may look."""
    position: Tensor
    """(B, L)."""

    @property
    def columns(self) -> int:
        """Return P + L."""
        return self.mask.shape[1]


class Steps(Protocol):
    """What a way of running steps can do."""

    def say(self, rows: Rows, longest: int) -> Iterator[Tensor]:
        """Yield the next ids (B,) of all rows, those behind the suffixes first; it is asked `longest` times at most."""

    def forget(self) -> None:
        """Give back memory that is kept between batches."""


def steps_for(kind: StepKind, forward: Forward, device: torch.device, limit: Callable[[], int]) -> Steps:
    """Return the steps of a kind on a device; `limit` says how many positions (rows times columns) may stay allocated.

    `auto` is `eager` on the CPU. On a GPU it is `static` for each shape where a timed try shows that recording pays.
    """
    if kind == "eager" or (kind == "auto" and device.type != "cuda"):
        return GrowingSteps(forward)
    step = forward
    if kind == "compile":
        torch._dynamo.config.recompile_limit = max(SHAPES, torch._dynamo.config.recompile_limit)
        step = torch.compile(forward, dynamic=False, fullgraph=True)
    return StaticSteps(forward, step, limit, only_if_faster=kind == "auto")


def _reading(rows: Rows, room: list[Buffers]) -> Cache:
    """Return the prefixes of the rows, copied to where there is room behind them."""
    layers = zip(rows.prefixes.layers, room, strict=True)
    return Cache(layers=[RoomyLayer(prefix, rows.owner, buffers) for prefix, buffers in layers])


class GrowingSteps:
    """Every step is launched kernel by kernel, over the columns that are filled, one more each time."""

    def __init__(self, forward: Forward) -> None:
        self.forward = forward

    def say(self, rows: Rows, longest: int) -> Iterator[Tensor]:
        """See `Steps`."""
        count, columns = len(rows.owner), rows.columns + longest
        mine = _reading(rows, [room_for(layer, count, columns) for layer in rows.prefixes.layers])
        ids_BL, mask_BC, position_BL = rows.ids, rows.mask, rows.position
        while True:
            next_B = self.forward(ids_BL, mask_BC, position_BL, mine)
            yield next_B
            ids_BL = next_B[:, None]
            mask_BC = torch.cat([mask_BC, mask_BC.new_ones(len(mask_BC), 1)], dim=1)
            position_BL = position_BL[:, -1:] + 1

    def forget(self) -> None:
        """Nothing is kept."""


class StaticSteps:
    """The suffixes are read as they are; each step after them has one of a few fixed shapes, recorded where that is faster.

    Rows and columns are rounded up, and what was allocated and recorded for a shape serves later batches that fit it.
    """

    def __init__(self, read: Forward, step: Forward, limit: Callable[[], int], *, only_if_faster: bool = False) -> None:
        self.read = read
        self.step = step
        self.limit = limit
        self.only_if_faster = only_if_faster
        self.growing = GrowingSteps(read)
        self.held: list[FixedShape] = []
        """Least recently used first."""
        self.slow: set[tuple[int, int]] = set()
        """Shapes for which recording did not pay, or that did not fit."""
        self.refused = False
        """The model cannot be recorded: no shape is tried again."""

    def say(self, rows: Rows, longest: int) -> Iterator[Tensor]:
        """See `Steps`."""
        size = _rounded(len(rows.owner), rows.columns + longest)
        try:
            shape = self._shape(rows.prefixes, size)
            if shape is None:
                yield from self.growing.say(rows, longest)
                return
            yield shape.read(rows, self.read)
            while True:
                yield shape.next()
        except torch.OutOfMemoryError:
            self.slow.add(size)  # the rows may fit without the padding
            raise

    def forget(self) -> None:
        """Drop all buffers and recordings."""
        self.held.clear()

    def _shape(self, like: Cache, size: tuple[int, int]) -> "FixedShape | None":
        if self.refused or size in self.slow:
            return None
        fitting = [one for one in self.held if one.fits(*size)]
        if not fitting:
            return self._new(like, size)
        best = min(fitting, key=lambda one: one.positions)
        self.held.remove(best)
        self.held.append(best)
        return best

    def _new(self, like: Cache, size: tuple[int, int]) -> "FixedShape | None":
        while self.held and sum(one.positions for one in self.held) + size[0] * size[1] > self.limit():
            self.held.pop(0)
        shape = FixedShape(like, *size, self.step)
        if self._records(shape) and self._gain(shape) <= 1 and self.only_if_faster:
            self.slow.add(size)
            return None
        self.held.append(shape)
        return shape

    def _records(self, shape: "FixedShape") -> bool:
        return shape.at.is_cuda

    def _gain(self, shape: "FixedShape") -> float:
        """Record a shape. Raises ConfigError where its model cannot be recorded, but for `auto`, which goes on without."""
        try:
            gain = shape.record()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if not self.only_if_faster:
                raise ConfigError(f"this model's step cannot be recorded, answer with steps=eager: {error}") from error
            logger.warning("this model's step cannot be recorded: %s", error)
            self.refused = True
            return 0.0
        logger.info("a step of %d rows and %d columns is %.2fx as fast recorded", shape.rows, shape.columns, gain)
        return gain


def _rounded(rows: int, columns: int) -> tuple[int, int]:
    """Return a shape that more batches share. Rows: 8 and its multiples, from 64 on of 32; columns: multiples of 64."""
    each = 8 if rows <= 64 else 32
    return -(-rows // each) * each, -(-columns // 64) * 64


class FixedShape:
    """Rows and columns of one shape: their buffers, and the step over them."""

    def __init__(self, like: Cache, rows: int, columns: int, forward: Forward) -> None:
        device = like.layers[0].keys.device
        self.rows, self.columns, self.forward = rows, columns, forward
        self.room = [room_for(layer, rows, columns) for layer in like.layers]
        self.at = torch.zeros(1, dtype=torch.long, device=device)
        self.ids_B1 = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.position_B1 = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.mask_BC = like.layers[0].keys.new_zeros(rows, columns)  # added to scores: each block would make that of a bool
        self.cache = Cache(layers=[FixedLayer(buffers, self.at) for buffers in self.room])
        self.filled = rows
        self._advance: Callable[[], None] = self._step

    @property
    def positions(self) -> int:
        """Return rows times columns."""
        return self.rows * self.columns

    def fits(self, rows: int, columns: int) -> bool:
        """Whether such a batch has room here and wastes no more than half of it."""
        return rows <= self.rows and columns <= self.columns and self.positions <= 2 * rows * columns

    def read(self, rows: Rows, forward: Forward) -> Tensor:
        """Take a batch in, read its suffixes and return the ids (B,) that follow. Rows beyond B go along and say nothing."""
        self.filled, columns = len(rows.owner), rows.columns
        mine = [(keys[: self.filled], values[: self.filled]) for keys, values in self.room]
        for keys, values in mine:  # a masked column still is multiplied by zero: it must be a number
            keys[:, :, columns:] = 0
            values[:, :, columns:] = 0
        next_B = forward(rows.ids, rows.mask, rows.position, _reading(rows, mine))
        self.mask_BC.fill_(-torch.inf)
        self.mask_BC[: self.filled, :columns].masked_fill_(rows.mask.bool(), 0)
        self.at.fill_(columns)
        self.ids_B1[: self.filled, 0] = next_B
        self.position_B1[: self.filled] = rows.position[:, -1:] + 1
        return next_B

    def next(self) -> Tensor:
        """Return the next ids (B,)."""
        self._advance()
        return self.ids_B1[: self.filled, 0].clone()

    def _step(self) -> None:
        """Read the last ids and leave the next ones in their place. Every tensor keeps its address."""
        self.mask_BC.index_fill_(1, self.at, 0)
        next_B = self.forward(self.ids_B1, self.mask_BC[:, None, None], self.position_B1, self.cache)
        self.ids_B1.copy_(next_B[:, None])
        self.position_B1.add_(1)
        self.at.add_(1)

    def record(self) -> float:
        """Record the step as a CUDA graph and return how many times as fast it is as its launches one by one."""
        launched_s = _seconds(self._step)  # warms up what a recording must not contain
        self.at.zero_()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._step()
        self._advance = graph.replay
        return launched_s / _seconds(graph.replay)


def _seconds(step: Callable[[], Any], times: int = 3) -> float:
    """Return what a step takes on the GPU, the quickest of some."""
    taken = []
    for _ in range(times + 1):
        torch.cuda.synchronize()
        began = time.perf_counter()
        step()
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return min(taken[1:])
