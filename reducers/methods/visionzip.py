"""VisionZip: keep the patches that CLS attends to most, fold the others into a few spread targets.

Shapes: F frames, N patches, P dominant patches, M = N - P remaining, C contextual targets, D width, d width of a head.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from reducers.base import (
    CONTEXTUAL,
    KEPT,
    BudgetError,
    Capture,
    Fingerprinted,
    ReducedTokens,
    TextQuery,
    VisualTokens,
    check_finite,
)
from reducers.ops.frame_rows import taken
from reducers.ops.layout import Slots, assemble, cls_slot
from reducers.ops.ranking import normalised, rank_of, ranked


@dataclass(frozen=True, kw_only=True)
class VisionZipConfig:
    """Parameters of `visionzip`, per frame. Published for 576 patches: 54 + 10, 108 + 20, 162 + 30."""

    dominant: int = 14
    """Tokens kept for their attention; CLS is one of them when it is kept."""
    contextual: int = 3
    """Tokens that take in all others."""
    merge: Literal["add", "mean"] = "add"
    """add: the target plus the mean of what is assigned to it, as published. mean: their mean."""
    keep_cls: bool = True
    """Emit CLS first and count it in `dominant`."""
    score: Literal["cls", "received"] = "cls"
    """received: rank by the attention that a patch receives from all others, for towers without CLS."""

    def __post_init__(self) -> None:
        if self.dominant < 1 or self.contextual < 0:
            raise BudgetError(f"expected dominant >= 1 and contextual >= 0, got {self.dominant} and {self.contextual}")


@dataclass(frozen=True)
class VisionZip(Fingerprinted):
    """Keeps dominant patches and merges the rest into contextual tokens by key similarity.

    Source: dvlab-research/VisionZip, CVPR 2025, at 3151f6d; docs/methods/frames.md section 5.5.
    Departs: no configuration raises on data (V5): more targets than patches makes every one a target.
    """

    config: VisionZipConfig
    name: ClassVar[str] = "visionzip"
    version: ClassVar[int] = 1
    keys: ClassVar[Capture] = Capture(kind="keys", block="selected", heads="mean")

    @property
    def needs(self) -> frozenset[Capture]:
        """The scores and the keys of the block that produced the selected layer."""
        return frozenset({self.attention, self.keys})

    @property
    def attention(self) -> Capture:
        """The scores that patches are ranked by."""
        return Capture(kind="received" if self.config.score == "received" else "cls_attn", block="selected", heads="sum")

    def reduce(self, tokens: VisualTokens, text: TextQuery | None = None) -> ReducedTokens:
        """Return CLS, dominant patches ascending and contextual tokens ascending, frame by frame."""
        check_finite(tokens)
        keep_cls = self.config.keep_cls and tokens.cls is not None
        patches = tokens.features.shape[1]
        rank_FN = rank_of(ranked(tokens.capture(self.attention)))
        dominant_FN = rank_FN < min(self.config.dominant - keep_cls, patches)
        rest_FM = _where(~dominant_FN)
        target_C = _targets(rest_FM.shape[1], self.config.contextual)
        kept = _plain(tokens, _where(dominant_FN))
        context, assigned_FM = self._context(tokens, rest_FM, target_C)
        blocks = [kept, context]
        slot_FN = torch.full(rank_FN.shape, -1, device=rank_FN.device)
        dominant = kept.anchor.shape[1]
        slot_FN.scatter_(1, kept.anchor, torch.arange(dominant, device=rank_FN.device).expand_as(kept.anchor))
        slot_FN.scatter_(1, rest_FM, torch.where(assigned_FM >= 0, assigned_FM + dominant, -1))
        if keep_cls and tokens.cls is not None:
            blocks.insert(0, cls_slot(tokens.cls))
            slot_FN = torch.where(slot_FN >= 0, slot_FN + 1, -1)
        return assemble(tokens, blocks, slot_FN)

    def _context(self, tokens: VisualTokens, rest_FM: Tensor, target_C: Tensor) -> tuple[Slots, Tensor]:
        """Merge the rest into its targets; return them and the target of each remaining patch (F, M)."""
        x_FMD = taken(tokens.features.float(), rest_FM)
        k_FMd = normalised(taken(tokens.capture(self.keys), rest_FM))
        targets = len(target_C)
        if targets == 0:
            empty_F0 = rest_FM[:, :0]
            nothing = Slots(features=x_FMD[:, :0], valid=empty_F0 >= 0, anchor=empty_F0, kind=CONTEXTUAL, size=empty_F0.float())
            return nothing, torch.full_like(rest_FM, -1)
        likeness_FMC = k_FMd @ k_FMd[:, target_C].transpose(1, 2)
        nearest_FM = likeness_FMC.argmax(dim=-1)
        nearest_FM[:, target_C] = torch.arange(targets, device=rest_FM.device)
        others_FMC = torch.nn.functional.one_hot(nearest_FM, targets).float()
        others_FMC[:, target_C] = 0
        count_FC = others_FMC.sum(1)
        sum_FCD = others_FMC.transpose(1, 2) @ x_FMD
        own_FCD = x_FMD[:, target_C]
        if self.config.merge == "mean":
            merged = (own_FCD + sum_FCD) / (1 + count_FC[..., None])
        else:
            merged = own_FCD + sum_FCD / count_FC.clamp(min=1)[..., None]
        valid = torch.ones(count_FC.shape, dtype=torch.bool, device=rest_FM.device)
        slots = Slots(features=merged, valid=valid, anchor=rest_FM[:, target_C], kind=CONTEXTUAL, size=1 + count_FC)
        return slots, nearest_FM


def _targets(rest: int, contextual: int) -> Tensor:
    """Return places 0, step, 2 * step, ... of the first `contextual` targets among the remaining patches."""
    step = max(1, rest // contextual) if contextual else 1
    return torch.arange(0, rest, step)[:contextual]


def _where(mask_FN: Tensor) -> Tensor:
    """Return the True places of each row, ascending; every row has as many."""
    return mask_FN.nonzero()[:, 1].view(len(mask_FN), int(mask_FN[0].sum()))


def _plain(tokens: VisualTokens, index_FK: Tensor) -> Slots:
    ones = torch.ones(index_FK.shape, device=index_FK.device)
    features = taken(tokens.features, index_FK).float()
    return Slots(features=features, valid=ones.bool(), anchor=index_FK, kind=KEPT, size=ones)
