"""The one shape that every stage of the pipeline has."""

from typing import Protocol

import pyarrow as pa


class Stage(Protocol):
    """A callable over Arrow tables. Built once per worker, called once per batch, knows nothing of who runs it.

    A data error is a row with `error_class` set; only faults of infrastructure or configuration are raised.
    """

    def __call__(self, batch: pa.Table, /) -> pa.Table:
        """Return the batch with this stage's columns; rows that failed earlier pass through untouched."""
        ...
