"""Thresholds on the similarity of patches: the parameters of methods that use one, and its calibration.

Shapes: F frames of one clip, N patches, D width.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from reducers.base import ReducerError
from reducers.ops.clip_budget import ClipConfig
from reducers.ops.ranking import adjacent_likeness


@dataclass(frozen=True, kw_only=True)
class ThresholdConfig(ClipConfig):
    """The parameters of methods that call a patch the same as an earlier one above a cosine of tau."""

    tau: float | None = None
    """0.8 where absolute."""
    tau_mode: Literal["absolute", "quantile"] = "absolute"
    """quantile: tau comes from `framefold calibrate` on this corpus and tower. Published values fit other towers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tau is None and self.tau_mode == "quantile":
            raise ReducerError("expected tau with tau_mode=quantile, from calibrated_tau or framefold calibrate, got none")
        object.__setattr__(self, "tau", 0.8 if self.tau is None else self.tau)
        if not -1 <= (self.tau or 0.0) <= 1:
            raise ReducerError(f"expected tau in [-1, 1], got {self.tau}")


def above(values_n: Tensor, share: float) -> float:
    """Return the largest of the values above which `share` of them lie, or the lowest of all.

    Where many are equal, more than `share` may lie above it. Raises ReducerError where there are no values.
    """
    rising = values_n.sort().values
    if len(rising) == 0:
        raise ReducerError("expected clips of two frames or more, got none")
    wanted = round(share * len(rising))
    higher_n = len(rising) - torch.searchsorted(rising, rising, right=True)
    return float(rising[int((higher_n >= wanted).sum()) - 1 if bool((higher_n >= wanted).any()) else 0])


def calibrated_tau(clips: Iterable[Tensor], static_share: float = 0.5) -> float:
    """Return the threshold above which `static_share` of the adjacent same-place pairs of some clips lie.

    Args:
        clips: features (F, N, D) of at least 200 videos of the corpus.
        static_share: in (0, 1).

    Raises:
        ReducerError: the share is not in (0, 1), or no clip has two frames.

    Source: docs/methods/video.md section 2, point 3.
    """
    if not 0 < static_share < 1:
        raise ReducerError(f"expected static_share in (0, 1), got {static_share}")
    return above(torch.cat([adjacent_likeness(x_FND).flatten() for x_FND in clips]), static_share)
