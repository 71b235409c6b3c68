"""Whether a reducer leaves the same number of tokens of every clip of one size, or a number that depends on the content."""

from reducers.base import Reducer
from reducers.compose.composition import CompositionConfig
from reducers.methods.grids import SequentialConfig, SpatialConfig
from reducers.methods.hired import HiRedConfig
from reducers.methods.none import NoneConfig
from reducers.methods.prumerge import PruMergeConfig
from reducers.methods.tome import ToMe, ToMeConfig
from reducers.methods.visionzip import VisionZipConfig
from reducers.nest.order import NestConfig
from reducers.ops.clip_budget import ClipConfig

FIXED = (NoneConfig, SequentialConfig, SpatialConfig, VisionZipConfig, ToMeConfig, NestConfig)
"""Configs of methods whose token count follows from the size of the clip."""


def has_fixed_count(reducer: Reducer) -> bool:
    """Return whether every clip of the same frames and patches keeps the same number of tokens.

    False also for methods that this module does not know.
    """
    config = reducer.config
    if isinstance(config, CompositionConfig):
        return bool(config.first.params.exact)
    if isinstance(config, ClipConfig):
        return config.exact
    if isinstance(config, PruMergeConfig):
        return config.ratio is not None
    if isinstance(config, HiRedConfig):
        return config.spatial_tokens == 0
    return isinstance(config, FIXED)


def merged_count(reducer: ToMe, *, frames: int, patches: int, blocks: int) -> int:
    """Return how many tokens of a clip merging inside the tower leaves.

    Args:
        reducer: its schedule says how many rows each block merges; a block merges at most half of its patch rows.
        frames: F, frames of the clip.
        patches: N, patches of a frame.
        blocks: blocks that run, up to the selected hidden state.
    """
    rows = patches
    for merged in reducer.schedule(patches, blocks):
        rows -= max(0, min(merged, rows // 2))
    return frames * rows
