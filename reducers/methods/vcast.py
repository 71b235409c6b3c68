"""V-CAST: share a budget over frames by how sharply the clip turns at each of them.

Shapes: F frames of one clip, N patches, D width. Only the allocator is ours to recommend, for any per-frame method; the
reducer here spends the budgets on the patches that CLS attends to most.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from reducers.base import BudgetError, Capture, Fingerprinted, ReducedTokens, TextQuery, VisualTokens
from reducers.ops.budgets import allocate
from reducers.ops.clip_budget import ATTENTION, Budget, Clip, ClipConfig, ClipTokens, kept, reduce_clips
from reducers.ops.ranking import normalised, top_mask


@dataclass(frozen=True, kw_only=True)
class VCastConfig(ClipConfig):
    """Parameters of `vcast`."""

    temperature: float = 0.7
    """Divides curvature before the softmax over frames."""
    least: int = 1
    """Tokens that every frame gets, if the budget allows."""
    compat: bool = False
    """Published accident A8, the whole rounding remainder to one frame, and the published patch score."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0 or self.least < 0:
            raise BudgetError(f"expected temperature > 0 and least >= 0, got {self.temperature} and {self.least}")


def curvature(x_FND: Tensor) -> Tensor:
    """Return 1 - cosine of the steps to and from each frame's mean (F,), float32; 1 at both ends."""
    u_FD = normalised(x_FND.float().mean(1))
    step_FD = normalised(u_FD[1:] - u_FD[:-1])
    turn_F = torch.ones(len(u_FD), device=u_FD.device)
    turn_F[1:-1] = 1 - (step_FD[:-1] * step_FD[1:]).sum(-1)
    return turn_F


def frame_budgets(curvature_F: Tensor, total: int, cap: int, config: VCastConfig) -> Tensor:
    """Share `total` over frames (F,), int64, none above `cap`; exact wherever total <= F * cap.

    Source: xinyouu/V-CAST at c235ef3; docs/methods/video.md section 5.7.
    Departs: the rounding remainder goes to the largest fractions, one each; published gives all of it to one frame
    (A8).
    """
    frames = len(curvature_F)
    weight_F = (curvature_F / config.temperature).softmax(0)
    least = min(config.least, total // frames, cap)
    rest = total - frames * least
    if not config.compat:
        return least + allocate(rest, weight_F, cap - least)
    exact_F = rest * weight_F
    budget_F = least + exact_F.floor().long()
    budget_F[(exact_F - exact_F.floor()).argmax()] += total - int(budget_F.sum())
    return budget_F.clamp(max=cap)


def published_score(x_FND: Tensor) -> Tensor:
    """Return V-CAST's score (F, N): unlikeness to the frame's mean plus length, scaled to 0..1 in the frame."""
    unlike_FN = 1 - (normalised(x_FND) @ normalised(x_FND.mean(1))[..., None])[..., 0]
    length_FN = x_FND.norm(dim=-1)
    low, high = length_FN.amin(1, keepdim=True), length_FN.amax(1, keepdim=True)
    return unlike_FN + (length_FN - low) / (high - low).clamp(min=1e-12)


def vcast(clip: Clip, budget: Budget, config: VCastConfig) -> ClipTokens:
    """Return the best patches of each frame, as many as its curvature earns."""
    budget_F = frame_budgets(curvature(clip.x), budget.patches, clip.a.shape[1], config)
    score_FN = published_score(clip.x) if config.compat else clip.a
    return kept(clip, top_mask(score_FN, budget_F).flatten().nonzero()[:, 0])


@dataclass(frozen=True)
class VCast(Fingerprinted):
    """Keeps the best attended patches of each frame; frames where the clip changes course get more.

    Source: as `frame_budgets`.
    Departs: patches are ranked by CLS attention; published adds the norm, which CLIP's artefact tokens dominate.
    """

    config: VCastConfig
    name: ClassVar[str] = "vcast"
    version: ClassVar[int] = 1
    needs: ClassVar[frozenset[Capture]] = frozenset({ATTENTION})

    def reduce(self, tokens: VisualTokens, text: TextQuery | None = None) -> ReducedTokens:
        """Return the kept patches of each clip unchanged, ascending."""
        return reduce_clips(tokens, self.config, partial(vcast, config=self.config))
