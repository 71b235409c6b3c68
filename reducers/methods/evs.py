"""EVS: keep what changed since the frame before.

Shapes: F frames of one clip, N patches, M = F * N, K kept, D width.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from reducers.base import Capture, Fingerprinted, ReducedTokens, TextQuery, VisualTokens
from reducers.ops.clip_budget import ATTENTION, Budget, Clip, ClipConfig, ClipTokens, kept, reduce_clips
from reducers.ops.ranking import adjacent_likeness, rank_of, ranked


@dataclass(frozen=True, kw_only=True)
class EvsConfig(ClipConfig):
    """Parameters of `evs`."""

    compat: bool = False
    """Keep at least as many tokens as one frame has, as published; with exact=false."""


def changed(x_FND: Tensor, a_FN: Tensor, keep: int) -> Tensor:
    """Choose the patches least like their own place one frame earlier.

    Frame 0 counts as all new. If less than one frame is kept, it competes by attention: its best attended patch
    counts as the largest change there is, the others as less, evenly.

    Returns:
        Ids (K,), int64, rising. What is kept of fewer tokens is kept of more, on either side of N.

    Source: vllm-project/vllm, vllm/multimodal/evs.py at 094f117; docs/methods/video.md section 5.1.
    Departs: fewer tokens than one frame has are possible; published always keeps frame 0 whole.
    """
    patches = x_FND.shape[1]
    change_FN = pad(1 - adjacent_likeness(x_FND), (0, 0, 1, 0), value=torch.inf)
    if keep < patches:
        change_FN[0] = 2 * (1 + rank_of(a_FN[0].argsort(stable=True))) / patches
    return ranked(change_FN.flatten())[:keep].sort().values


def evs(clip: Clip, budget: Budget, config: EvsConfig) -> ClipTokens:
    """Return the changed patches of a clip unchanged."""
    floor = clip.a.shape[1] if config.compat else 0
    return kept(clip, changed(clip.x, clip.a, max(floor, budget.patches)))


@dataclass(frozen=True)
class Evs(Fingerprinted):
    """Keeps the patches least like (cosine) their own place one frame earlier.

    Source: as `changed`.
    Departs: K is the budget itself; published is a pruning rate that leaves at least as many tokens as one frame has.
    """

    config: EvsConfig
    name: ClassVar[str] = "evs"
    version: ClassVar[int] = 1
    needs: ClassVar[frozenset[Capture]] = frozenset({ATTENTION})

    def reduce(self, tokens: VisualTokens, text: TextQuery | None = None) -> ReducedTokens:
        """Return the kept patches of each clip unchanged, ascending."""
        return reduce_clips(tokens, self.config, partial(evs, config=self.config))
