"""First parts of a composition: each decides over time where tokens may be and how many, a method for frames spends them.

Shapes: F frames of one clip, N patches, M = F * N, R rows, W windows, D width, B budget without CLS rows.

Source: docs/methods/video.md section 6. Nothing of it is published: budgets by `allocate` are exact.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from reducers.base import BudgetError
from reducers.compose.candidates import Places
from reducers.methods.evs import changed
from reducers.methods.unicomp import group_budgets
from reducers.methods.vcast import VCastConfig, curvature, frame_budgets
from reducers.ops.budgets import allocate
from reducers.ops.clip_budget import Budget, Clip, ClipConfig, summed
from reducers.ops.ranking import adjacent_likeness
from reducers.ops.segments import segment_of, windows
from reducers.ops.similarity import ThresholdConfig
from reducers.ops.trees import links, trees


@dataclass(frozen=True, kw_only=True)
class AllocConfig(ClipConfig):
    """Parameters of `alloc`."""

    weights: Literal["uniform", "vcast", "unicomp", "novelty"] = "uniform"
    """What earns a frame its tokens: nothing; sharp turns of the clip; unlike other frames; patches that are new."""
    temperature: float = 0.7
    """Divides the turns of vcast before the softmax over frames."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise BudgetError(f"expected temperature > 0, got {self.temperature}")


@dataclass(frozen=True, kw_only=True)
class EvsPartConfig(ClipConfig):
    """Parameters of `evs` as a first part."""

    widen: float = 2.0
    """Patches that stay candidates, as a multiple of B."""
    absorb: bool = True
    """Patches that did not change may still be merged into a token; off, they are dropped."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.widen >= 1:
            raise BudgetError(f"expected widen >= 1, so that B tokens can be found, got {self.widen}")


@dataclass(frozen=True, kw_only=True)
class StaticConfig(ThresholdConfig):
    """Parameters of `static`."""

    block: Literal["dpc", "visionzip"] = "dpc"
    """Who merges what stands still: density peaks, or VisionZip on the mean of the window."""
    beta: float = 0.6
    """Weight of a density peak's own value."""
    neighbours: int = 7
    """Points that the density of a patch is taken from."""
    max_window: int | None = None
    """Most frames of a window."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta <= 1 or self.neighbours < 1 or (self.max_window is not None and self.max_window < 1):
            got = f"{self.beta}, {self.neighbours} and {self.max_window}"
            raise BudgetError(f"expected beta in [0, 1], neighbours and max_window of at least 1, got {got}")


@dataclass(frozen=True, kw_only=True)
class TreeConfig(ThresholdConfig):
    """Parameters of `tree`; `tau` is the cosine above which a patch continues one of the frame before."""

    segments: int | None = None
    """Least number of segments. Default: a quarter of the frames, rounded up."""
    segment_tau: float = 0.9
    """Frames whose means are less alike than this are always cut apart."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.segments is not None and self.segments < 1:
            raise BudgetError(f"expected segments >= 1, got {self.segments}")


def novelty(clip: Clip) -> Tensor:
    """Return how much of each frame is new and attended to (F,): the mass of `nest`, summed over its patches.

    Source: docs/methods/video.md section 7.1, 1 to 3, with the constants given there.
    """
    centred_FND = clip.x - clip.x.mean((0, 1))
    same_FN = centred_FND.norm(dim=-1) < 1e-6 * clip.x.norm(dim=-1)
    likeness_FN = adjacent_likeness(centred_FND.masked_fill(same_FN[..., None], 0)).clamp(0, 1)
    change_FN = 1 - pad(likeness_FN, (0, 0, 1, 0))
    attended_FN = 0.3 + 0.7 * (clip.a.shape[1] * clip.a).clamp(max=3)
    return (attended_FN * (0.2 + 0.8 * change_FN)).sum(1)


def frame_shares(clip: Clip, total: int, config: AllocConfig) -> Tensor:
    """Share `total` tokens over the frames of a clip (F,), int64, no more than N each."""
    frames, patches = clip.a.shape
    if config.weights == "vcast":
        return frame_budgets(curvature(clip.x), total, patches, VCastConfig(temperature=config.temperature))
    if config.weights == "unicomp":
        return group_budgets(clip.g, total, patches)
    weight_F = novelty(clip) if config.weights == "novelty" else torch.ones(frames, device=clip.a.device)
    return allocate(total, weight_F, patches)


def alloc(clip: Clip, budget: Budget, config: AllocConfig) -> list[Places]:
    """Hand over every patch, and a budget for each frame."""
    everywhere_FN = torch.ones_like(clip.a, dtype=torch.bool)
    return [_frames(clip, everywhere_FN, everywhere_FN, frame_shares(clip, budget.patches, config))]


def evs(clip: Clip, budget: Budget, config: EvsPartConfig) -> list[Places]:
    """Hand over the patches that changed most, `widen` times the budget of them; frames earn by how many they have."""
    candidates = min(clip.a.numel(), int(budget.patches * config.widen))
    open_M = torch.zeros(clip.a.numel(), dtype=torch.bool, device=clip.a.device)
    open_M[changed(clip.x, clip.a, candidates)] = True
    open_FN = open_M.view_as(clip.a)
    free_FN = torch.ones_like(open_FN) if config.absorb else open_FN
    return [_frames(clip, open_FN, free_FN, _shares(budget, open_FN))]


def static(clip: Clip, budget: Budget, config: StaticConfig) -> list[Places]:
    """Hand over windows of HoliTom as one frame each, with what stands still in them, and frames with what changes.

    What stands still counts once; all places of both kinds earn alike.
    """
    frames, patches, _ = clip.x.shape
    device = clip.x.device
    spans, still_WN = windows(adjacent_likeness(clip.x) > (config.tau or 0.0), config.max_window or frames)
    lengths_W = torch.tensor([end - start + 1 for start, end in spans], device=device)
    window_F = torch.repeat_interleave(torch.arange(len(spans), device=device), lengths_W)
    still_FN = still_WN[window_F]
    budget_R = _shares(budget, torch.cat([still_WN, ~still_FN]))
    place_FN = window_F[:, None] * patches + torch.arange(patches, device=device)
    together = Places(
        x=torch.stack([clip.x[start : end + 1].mean(0) for start, end in spans]),
        size=still_WN * lengths_W[:, None].float(),
        open=still_WN,
        free=still_WN,
        budget=budget_R[: len(spans)],
        spans=spans,
        place=torch.where(still_FN, place_FN, -1).flatten(),
        by_first=True,
    )
    return [together, _frames(clip, ~still_FN, ~still_FN, budget_R[len(spans) :])]


def tree(clip: Clip, budget: Budget, config: TreeConfig) -> list[Places]:
    """Hand over the roots of FlashVID's trees, with the mean and the size of what continues them; frames earn by roots."""
    patches = clip.x.shape[1]
    segment_F = segment_of(adjacent_likeness(clip.x.mean(1)), config.segments, config.segment_tau)
    everywhere_FN = torch.ones_like(clip.a, dtype=torch.bool)
    least = min(patches, ceil(patches * budget.patches / clip.a.numel()))
    parent_M = links(clip.x, everywhere_FN, segment_F, least, config.tau or 0.0)
    root_M, value_MD = trees(clip.x.flatten(0, 1), parent_M, direct=False)
    root_FN = (root_M == torch.arange(len(root_M), device=root_M.device)).view_as(clip.a)
    size_M = summed(torch.ones_like(root_M, dtype=torch.float32), root_M, len(root_M))
    found = _frames(clip, root_FN, root_FN, _shares(budget, root_FN))
    return [
        Places(
            x=value_MD.view_as(clip.x),
            size=size_M.view_as(clip.a),
            open=root_FN,
            free=root_FN,
            budget=found.budget,
            spans=found.spans,
            place=root_M,
        )
    ]


def _shares(budget: Budget, open_RN: Tensor) -> Tensor:
    """Share a budget over rows by their open places (R,), as far as these go."""
    return allocate(budget.patches, open_RN.sum(1), open_RN.sum(1))


def _frames(clip: Clip, open_FN: Tensor, free_FN: Tensor, budget_F: Tensor) -> Places:
    """Return frames as rows, a place for each patch that is free."""
    here_M = torch.arange(clip.a.numel(), device=clip.a.device)
    return Places(
        x=clip.x,
        size=free_FN.float(),
        open=open_FN,
        free=free_FN,
        budget=budget_F.to(clip.x.device),
        spans=[(frame, frame) for frame in range(len(clip.x))],
        place=torch.where(free_FN.flatten(), here_M, -1),
    )


@dataclass(frozen=True, kw_only=True)
class First:
    """A method that can be the first part. Any: each has its own config."""

    config: type[Any]
    plan: Callable[[Clip, Budget, Any], list[Places]]
    """Hands over the places of a clip, by a config."""
    about: str
    """One sentence for the catalogue."""
    version: int = 1
    """Goes into the encode fingerprint."""


FIRST: Mapping[str, First] = {
    "alloc": First(config=AllocConfig, plan=alloc, about="Shares the budget over frames; the second part sees every patch."),
    "evs": First(
        config=EvsPartConfig,
        plan=evs,
        about="Lets tokens stand only where EVS finds change, in twice as many places as there are tokens; frames earn by "
        "how many they have.",
    ),
    "static": First(
        config=StaticConfig,
        plan=static,
        about="Makes one frame of what stands still in a window of frames (HoliTom's) and merges it; the second part spends "
        "the rest on what changes.",
    ),
    "tree": First(
        config=TreeConfig,
        plan=tree,
        about="Links patches to what they continue in the frame before (FlashVID's trees) and hands over the means of the "
        "trees with their sizes.",
    ),
}
"""What may stand first."""
