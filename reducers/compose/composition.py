"""Two methods as one: the first decides over time where tokens may be and how many, the second spends them frame by frame.

Shapes: F frames of one clip, N patches, M = F * N, R rows.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from reducers.base import BudgetError, Capture, Fingerprinted, ReducedTokens, TextQuery, VisualTokens
from reducers.compose.candidates import Places, Spent, clip_tokens
from reducers.compose.selectors import FIRST, StaticConfig
from reducers.compose.spenders import SECOND, PruMergePartConfig, Read, VisionZipPartConfig, dense, read_clip
from reducers.compose.spenders import visionzip as spend_visionzip
from reducers.ops.clip_budget import ATTENTION, Budget, Clip, ClipTokens, clips_of, fit_budget, joined, kept


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part with all its parameters."""

    name: str
    version: int
    params: Any
    """Its config. Any: each method has its own."""


@dataclass(frozen=True, kw_only=True)
class CompositionConfig:
    """Both parts. Budget and CLS rows are parameters of the first."""

    first: Part
    second: Part

    def __post_init__(self) -> None:
        merge = self.second.params.merge if isinstance(self.second.params, PruMergePartConfig) else "none"
        if merge == "add" and self.first.name == "tree":
            raise BudgetError("merge=add adds up means of trees as if they were patches: only merge=mean counts their sizes")
        if merge is None:
            settled = replace(self.second.params, merge="mean" if self.first.name == "tree" else "add")
            object.__setattr__(self, "second", replace(self.second, params=settled))


@dataclass(frozen=True)
class Composed(Fingerprinted):
    """Runs the first part over each clip and the second over the rows that it hands over; the budget is met exactly.

    Source: docs/methods/video.md section 6.
    """

    config: CompositionConfig
    version: ClassVar[int] = 1

    @property
    def name(self) -> str:
        """`first|second`."""
        return f"{self.config.first.name}|{self.config.second.name}"

    @property
    def needs(self) -> frozenset[Capture]:
        """What either part reads."""
        config = self.config.second.params
        needs = frozenset({ATTENTION}) | SECOND[self.config.second.name].needs(config)
        return needs | SECOND["visionzip"].needs(VisionZipPartConfig()) if self._zips_static else needs

    @property
    def _zips_static(self) -> bool:
        first = self.config.first.params
        return isinstance(first, StaticConfig) and first.block == "visionzip"

    def reduce(self, tokens: VisualTokens, text: TextQuery | None = None) -> ReducedTokens:
        """Return the tokens of each clip, ascending. Raises ReducerError on a value that is not finite."""
        first, parts, budgets = self.config.first.params, [], []
        for clip, (start, end) in zip(clips_of(tokens), tokens.clip_ptr.unfold(0, 2, 1).tolist(), strict=True):
            budget = first.budget(*clip.a.shape, has_cls=tokens.cls is not None)
            found = self.tokens_of(clip, read_clip(tokens, self.needs, start, end), budget)
            parts.append(fit_budget(found, clip, budget.patches) if first.exact else found.by_anchor())
            budgets.append(budget)
        return joined(tokens, parts, budgets)

    def tokens_of(self, clip: Clip, read: Read, budget: Budget) -> ClipTokens:
        """Return what both parts make of one clip: as many tokens as there are places for, at most the budget."""
        if budget.patches == clip.a.numel():
            return kept(clip, torch.arange(clip.a.numel(), device=clip.a.device))
        rows = FIRST[self.config.first.name].plan(clip, budget, self.config.first.params)
        return clip_tokens(clip, [(places, self._spend(places, read)) for places in rows])

    def _spend(self, places: Places, read: Read) -> Spent:
        first, second = self.config.first.params, self.config.second
        if isinstance(first, StaticConfig) and places.by_first:
            if first.block == "visionzip":
                return spend_visionzip(places, read, VisionZipPartConfig())
            return dense(places, first.beta, first.neighbours)
        return SECOND[second.name].spend(places, read, second.params)
