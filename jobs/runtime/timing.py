"""Time stages wherever they run: the seconds travel in a column of the rows, so that the driver alone has to count them.

Rows come back from any actor of any node, committed; numbers kept by an actor would be lost when it ends.
"""

import time
from collections.abc import Iterator
from typing import TypeVar

import pyarrow as pa

SPENT = "spent"
TYPE = pa.list_(pa.struct([("stage", pa.string()), ("seconds", pa.float64())]))
"""What the stages spent on a table, on its first row; null on the others."""

S = TypeVar("S")


def timed(stage: type[S], name: str) -> type[S]:
    """Return the class of a stage that also reports its seconds, under a name or under those of its own `Watch`.

    Takes and returns what the stage does, with the column `SPENT` behind it. Its name stays: Ray's pages show it.
    """
    return type(stage.__name__, (_Timed, stage), {"NAME": name})


class _Timed:
    NAME: str

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return what the stage returns, and what was spent on it so far."""
        before = [{"stage": stage, "seconds": seconds} for stage, seconds in spent(batch)]
        began = time.perf_counter()
        done: pa.Table = super().__call__(_without(batch))  # type: ignore[misc]  # of the stage that this is mixed into
        whole = {self.NAME: time.perf_counter() - began}
        own = self.watch.take() if hasattr(self, "watch") else whole
        told = [*before, *({"stage": stage, "seconds": seconds} for stage, seconds in own.items())]
        rows = [told, *[None] * (done.num_rows - 1)] if done.num_rows else []
        return done.append_column(SPENT, pa.array(rows, TYPE))


def spent(table: pa.Table) -> Iterator[tuple[str, float]]:
    """Yield the stages of a table and the seconds that each took for one table on the way."""
    if SPENT in table.column_names:
        for told in table[SPENT].drop_null().to_pylist():
            yield from ((one["stage"], one["seconds"]) for one in told)


def _without(table: pa.Table) -> pa.Table:
    return table.drop_columns(SPENT) if SPENT in table.column_names else table
