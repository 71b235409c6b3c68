"""DyCoke's token temporal merging: of every four frames one stays whole, the others keep what changed.

Shapes: F frames of one clip, N patches, D width.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from reducers.base import BudgetError, Capture, Fingerprinted, ReducedTokens, TextQuery, VisualTokens
from reducers.ops.clip_budget import ATTENTION, Budget, Clip, ClipConfig, ClipTokens, kept, reduce_clips
from reducers.ops.ranking import normalised, rank_of, ranked

WINDOW = 4
"""Frames of a window: the first stays whole."""
REFERENCE = (0, 1, 2, 1)
"""How many frames back the reference of each frame of a window lies."""


@dataclass(frozen=True, kw_only=True)
class DyCokeConfig(ClipConfig):
    """Parameters of `dycoke_ttm`."""

    prune: float | None = None
    """K, share of a pruned frame that is dropped. Default: what meets the budget, at most all of it."""
    compat: bool = False
    """Published accident A1: the third frame of the last window stays whole, an odd last frame is lost."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prune is not None and not 0 <= self.prune <= 1:
            raise BudgetError(f"expected prune in [0, 1], got {self.prune}")


def unlike_reference(x_FND: Tensor, prune: float, *, compat: bool = False) -> Tensor:
    """Return which patches stay (F, N) bool: in a pruned frame the int((1 - K) * N) least like their reference frame.

    References are always unpruned. The second frame of a window is compared with the first, the third with the first,
    the fourth with the third; the last window may be shorter.

    Source: KD-TAO/DyCoke at dd74634, dycole_ttm; docs/methods/video.md section 5.2.
    Departs: all windows alike, any number of frames (A1).
    """
    frames, patches, _ = x_FND.shape
    index_F = torch.arange(frames, device=x_FND.device)
    place_F = index_F % WINDOW
    u_FND = normalised(x_FND)
    like_FN = (u_FND * u_FND[index_F - torch.tensor(REFERENCE, device=x_FND.device)[place_F]]).sum(-1)
    whole_F = place_F == 0
    if compat:
        whole_F |= (place_F == 2) & (index_F - 2 >= frames - WINDOW)
    mask_FN = whole_F[:, None] | (rank_of(ranked(-like_FN)) < int((1 - prune) * patches))
    if compat and frames % 2:
        mask_FN[-1] = False
    return mask_FN


def dycoke(clip: Clip, budget: Budget, config: DyCokeConfig) -> ClipTokens:
    """Return whole frames and changed patches unchanged."""
    prune = min(1.0, (1 - budget.ratio) * WINDOW / (WINDOW - 1)) if config.prune is None else config.prune
    return kept(clip, unlike_reference(clip.x, prune, compat=config.compat).flatten().nonzero()[:, 0])


@dataclass(frozen=True)
class DyCoke(Fingerprinted):
    """Keeps every fourth frame whole and of the others the patches least like their reference frame.

    Source: as `unlike_reference`.
    Departs: K follows from the budget; below a quarter of the tokens `fit_budget` folds what is too many.
    """

    config: DyCokeConfig
    name: ClassVar[str] = "dycoke_ttm"
    version: ClassVar[int] = 1
    needs: ClassVar[frozenset[Capture]] = frozenset({ATTENTION})

    def reduce(self, tokens: VisualTokens, text: TextQuery | None = None) -> ReducedTokens:
        """Return the kept patches of each clip, ascending."""
        return reduce_clips(tokens, self.config, partial(dycoke, config=self.config))
