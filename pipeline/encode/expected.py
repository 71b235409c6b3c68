"""How many tokens and bytes an encode run is going to write, from the reducer's budget and the geometry of the tower."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.encode.stage import EncodeConfig, parse_reducer, reduced_zeros

if TYPE_CHECKING:
    from pipeline.models.checkpoint import Checkpoint
    from reducers.base import Reducer

Basis = Literal["exact", "estimate", "upper_bound"]
"""exact: every clip keeps this number of tokens. estimate: the mean of committed entries. upper_bound: no token is removed."""
EXACT: Basis = "exact"
ESTIMATE: Basis = "estimate"
UPPER_BOUND: Basis = "upper_bound"
SCALE_BYTES = 4
"""Of each token that is stored as int8: its factor, float32."""


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What one video, or one segment, is going to take in the store."""

    tokens: float
    """Tokens of an entry."""
    bytes: float
    """Bytes of its features, scales of int8 rows among them, as `payload_bytes` of the index counts them."""
    basis: Basis

    def report(self, videos: int) -> dict[str, Any]:
        """Return the numbers per video and of so many videos, for a job's report."""
        return {
            "basis": self.basis,
            "tokens_per_video": round(self.tokens, 2),
            "bytes_per_video": round(self.bytes),
            "tokens": round(self.tokens * videos),
            "bytes": round(self.bytes * videos),
        }


def expected_entry(config: EncodeConfig, frames: int, checkpoint: "Checkpoint", committed: pa.Table) -> Expected:
    """Return what a video of `frames` sampled frames is going to take.

    Args:
        config: reducer and stored dtype.
        frames: sampled frames of a clip.
        checkpoint: its tower gives patches and width.
        committed: rows of `schema.INDEX` of entries under the same spec; their mean stands in where the number of tokens
            depends on the content of a video.
    """
    from reducers.token_count import has_fixed_count

    reducer, shape = parse_reducer(config.reducer), checkpoint.tower_shape()
    each = shape.width + SCALE_BYTES if config.dtype == "int8" else 2 * shape.width
    tokens, basis = float(frames * (shape.grid[0] * shape.grid[1] + 1)), UPPER_BOUND
    if has_fixed_count(reducer):
        tokens, basis = float(_count(reducer, frames, checkpoint)), EXACT
    elif committed.num_rows:
        tokens, basis = float(pc.mean(committed["tokens"]).as_py()), ESTIMATE
    return Expected(tokens=tokens, bytes=tokens * each, basis=basis)


def _count(reducer: "Reducer", frames: int, checkpoint: "Checkpoint") -> int:
    """Return how many tokens a reducer leaves of any clip of this tower."""
    from pipeline.models.tower import blocks_to_run
    from reducers.methods.tome import ToMe
    from reducers.token_count import merged_count

    shape = checkpoint.tower_shape()
    if isinstance(reducer, ToMe):
        blocks = blocks_to_run(shape.blocks, checkpoint.layer)
        return merged_count(reducer, frames=frames, patches=shape.grid[0] * shape.grid[1], blocks=blocks)
    return len(reduced_zeros(reducer, frames, shape).features)
