"""What methods that look at a whole clip share: its inputs, its tokens, and budgets that are met exactly.

Shapes: F frames of one clip, N patches, M = F * N, D width, K tokens, H holders of a patch. id = frame * N + patch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from reducers.base import CLS, ENRICHED, KEPT, BudgetError, Capture, ReducedTokens, VisualTokens, check_finite
from reducers.ops.budgets import share_to_count
from reducers.ops.ranking import normalised, ranked

ATTENTION = Capture(kind="cls_attn", block="selected", heads="sum")
"""What every method here reads: exact budgets need it even where the method itself does not."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What one clip may spend."""

    patches: int
    """Tokens besides CLS rows."""
    ratio: float
    """The same as a share of M."""
    cls: bool
    """CLS rows are kept; their tokens are paid for already."""

    @classmethod
    def of(cls, wanted: int, *, frames: int, most: int, total: int, has_cls: bool) -> "Budget":
        """Part B between CLS rows and patches: the rows stay if they leave as many tokens for patches again.

        Args:
            wanted: B, tokens of the clip.
            frames: F, as many CLS rows there are.
            most: patches there are to choose from.
            total: M.
            has_cls: there are CLS rows, and they are asked for.
        """
        rows = has_cls and wanted >= 2 * frames
        patches = min(most, max(1, wanted - frames * rows))
        return cls(patches=patches, ratio=patches / total, cls=rows)


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """The parameters that all methods on whole clips have."""

    keep: int | None = None
    """B, tokens per clip, CLS rows included. Default: `ratio` of its patches."""
    ratio: float | None = None
    """B as a share of all patches, 0.25 by default."""
    keep_cls: bool = True
    """Keep the CLS row of each frame in front of its tokens, if B leaves as many tokens for patches again."""
    exact: bool = True
    """Fit what the method gives to B. Off: what the published arithmetic gives."""

    def __post_init__(self) -> None:
        if self.keep is not None and self.ratio is not None:
            raise BudgetError("expected keep or ratio, got both")
        if self.keep is None:
            object.__setattr__(self, "ratio", 0.25 if self.ratio is None else self.ratio)
        if self.keep is not None and self.keep < 1:
            raise BudgetError(f"expected keep >= 1, got {self.keep}")
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise BudgetError(f"expected ratio in (0, 1], got {self.ratio}")

    def budget(self, frames: int, patches: int, *, has_cls: bool) -> Budget:
        """Return what a clip of this size may spend: at least one token, at most all of them."""
        total = frames * patches
        wanted = self.keep or share_to_count(total, self.ratio or 0.0)
        found = Budget.of(wanted, frames=frames, most=total, total=total, has_cls=self.keep_cls and has_cls)
        return found if self.ratio is None or found.cls else replace(found, ratio=self.ratio)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """What a method sees of one clip, float32."""

    x: Tensor
    """(F, N, D) patch features."""
    a: Tensor
    """(F, N) CLS attention; each frame sums to 1."""
    g: Tensor
    """(F, D) frame vectors: CLS rows, or the mean patch for towers without."""
    metric: Tensor
    """(F, N, d) what patches are compared by: keys where a method asks for them, else features."""


@dataclass(frozen=True, kw_only=True)
class ClipTokens:
    """What a method makes of one clip."""

    features: Tensor
    """(K, D) float32."""
    anchor: Tensor
    """(K,) int64 ids."""
    kind: Tensor
    """(K,) uint8."""
    holder: Tensor
    """(M, H) int64: tokens that hold each patch, in equal shares; -1 where there is none."""

    @classmethod
    def by_size(cls, features: Tensor, anchor: Tensor, holder: Tensor, merged: int) -> "ClipTokens":
        """Return tokens that are KEPT where they hold one patch or none, and of the kind `merged` where they hold more."""
        plain = torch.full_like(anchor, KEPT, dtype=torch.uint8)
        found = cls(features=features, anchor=anchor, kind=plain, holder=holder)
        return replace(found, kind=torch.where(found.size > 1, merged, KEPT).to(torch.uint8))

    @property
    def size(self) -> Tensor:
        """Patches merged into each token (K,), float32."""
        held = self.holder >= 0
        share = held / held.sum(1, keepdim=True).clamp(min=1)
        tokens = len(self.anchor) + 1  # the last one is nobody's
        return summed(share.flatten(), self.holder.flatten() % tokens, tokens)[:-1]

    def by_anchor(self) -> "ClipTokens":
        """Return the tokens sorted by (frame, patch) of their anchors."""
        order = self.anchor.argsort(stable=True)
        place = pad(order.argsort(), (0, 1), value=-1)  # holder -1 reads the last one
        return ClipTokens(
            features=self.features[order], anchor=self.anchor[order], kind=self.kind[order], holder=place[self.holder]
        )


Method = Callable[[Clip, Budget], ClipTokens]
"""What `reduce_clips` runs on each clip."""


def reduce_clips(tokens: VisualTokens, config: ClipConfig, method: Method, keys: Capture | None = None) -> ReducedTokens:
    """Run a method on each clip by itself, fit its result to the budget, join the clips.

    A clip that its budget holds whole stays as it is. Raises ReducerError on a value that is not finite.
    """
    parts, budgets = [], []
    for clip in clips_of(tokens, keys):
        budget = config.budget(*clip.a.shape, has_cls=tokens.cls is not None)
        whole = budget.patches == clip.a.numel()
        found = kept(clip, torch.arange(clip.a.numel(), device=clip.a.device)) if whole else method(clip, budget)
        parts.append(fit_budget(found, clip, budget.patches) if config.exact else found.by_anchor())
        budgets.append(budget)
    return joined(tokens, parts, budgets)


def clips_of(tokens: VisualTokens, keys: Capture | None = None) -> list[Clip]:
    """Return each clip by itself. Raises ReducerError on a value that is not finite."""
    check_finite(tokens)
    a_FN = tokens.capture(ATTENTION).float()
    a_FN = a_FN / a_FN.sum(1, keepdim=True).clamp(min=1e-30)
    clips = []
    for start, end in tokens.clip_ptr.unfold(0, 2, 1).tolist():
        x = tokens.features[start:end].float()
        g = x.mean(1) if tokens.cls is None else tokens.cls[start:end].float()
        metric = x if keys is None else tokens.capture(keys)[start:end].float()
        clips.append(Clip(x=x, a=a_FN[start:end], g=g, metric=metric))
    return clips


def kept(clip: Clip, anchor_K: Tensor) -> ClipTokens:
    """Return patches unchanged."""
    holder = torch.full((clip.a.numel(), 1), -1, device=anchor_K.device)
    holder[anchor_K, 0] = torch.arange(len(anchor_K), device=anchor_K.device)
    kind = torch.full_like(anchor_K, KEPT, dtype=torch.uint8)
    return ClipTokens(features=clip.x.flatten(0, 1)[anchor_K], anchor=anchor_K, kind=kind, holder=holder)


def summed(rows: Tensor, slot: Tensor, slots: int) -> Tensor:
    """Return the sum of the rows of each slot (slots, ...), the same bits every time."""
    total = rows.new_zeros(slots, *rows.shape[1:])
    if rows.is_cuda:  # there index_add_ adds in any order
        return total.index_put_((slot,), rows, accumulate=True)
    return total.index_add_(0, slot, rows)


def fit_budget(found: ClipTokens, clip: Clip, budget: int) -> ClipTokens:
    """Return exactly `budget` tokens (all M if there are no more), sorted by anchor.

    Too many: those with the least attended anchors are folded, one by one, into the most similar token of their
    frame, or of the nearest frame that has one. Too few: the best attended anchors that are absent are added as they
    are.

    Source: docs/methods/video.md section 4, rule 6.
    Departs: an added patch leaves the size of the token that it was merged into, so that sizes still count each patch
    once.
    """
    found = found.by_anchor()
    if len(found.anchor) > budget:
        return _shrunk(found, clip, budget)
    absent_M = torch.ones(clip.a.numel(), dtype=torch.bool, device=clip.a.device)
    absent_M[found.anchor] = False
    order_M = ranked(clip.a.flatten())
    added = order_M[absent_M[order_M]][: budget - len(found.anchor)]
    holder = found.holder.clone()
    holder[added] = -1
    holder[added, 0] = len(found.anchor) + torch.arange(len(added), device=added.device)
    return ClipTokens(
        features=torch.cat([found.features, clip.x.flatten(0, 1)[added]]),
        anchor=torch.cat([found.anchor, added]),
        kind=torch.cat([found.kind, torch.full_like(added, KEPT, dtype=torch.uint8)]),
        holder=holder,
    ).by_anchor()


def _shrunk(found: ClipTokens, clip: Clip, budget: int) -> ClipTokens:
    x_KD, size_K, kind_K = found.features.clone(), found.size, found.kind.clone()
    u_KD, frame_K = normalised(x_KD), torch.div(found.anchor, clip.a.shape[1], rounding_mode="floor")
    leaving = clip.a.flatten()[found.anchor].argsort(stable=True)[: len(found.anchor) - budget]
    gone_K = torch.zeros_like(frame_K, dtype=torch.bool)
    into_K = torch.arange(len(frame_K), device=frame_K.device)
    for token in leaving.split(1):  # each fold changes what the next one is compared with
        gone_K.index_fill_(0, token, True)
        gap_K = (frame_K - frame_K[token]).abs().masked_fill(gone_K, len(clip.a))
        likeness_K = u_KD @ u_KD[token][0]
        target = likeness_K.masked_fill(gap_K > gap_K.min(), -torch.inf).argmax(0, keepdim=True)
        both = size_K[target] + size_K[token]
        merged_1D = (size_K[target] * x_KD[target] + size_K[token] * x_KD[token]) / both
        x_KD[target], u_KD[target] = merged_1D, normalised(merged_1D)
        size_K[target], into_K[token] = both, target
        kind_K[target] = torch.where(kind_K[target] == KEPT, ENRICHED, kind_K[target])
    for _ in range(len(frame_K).bit_length()):  # follow folds of folds, twice as far each time
        into_K = into_K[into_K]
    place_K = pad(((~gone_K).cumsum(0) - 1)[into_K], (0, 1), value=-1)
    stay = ~gone_K
    return ClipTokens(features=x_KD[stay], anchor=found.anchor[stay], kind=kind_K[stay], holder=place_K[found.holder])


def joined(tokens: VisualTokens, parts: list[ClipTokens], budgets: list[Budget]) -> ReducedTokens:
    """Lay out the tokens of all clips, sorted by anchor in each, CLS rows in front of their frames."""
    spans = tokens.clip_ptr.unfold(0, 2, 1).tolist()
    rows = [_with_cls(tokens, part, *span) if b.cls else part for part, b, span in zip(parts, budgets, spans, strict=True)]
    patches, width = tokens.features.shape[1], tokens.grid[1]
    kind, key = (torch.cat([getattr(row, name) for row in rows]) for name in ("kind", "anchor"))
    cls = kind == CLS
    frame = torch.where(cls, -1 - key, torch.div(key, patches, rounding_mode="floor"))
    place = key.clamp(min=0) % patches
    position = torch.stack([frame, torch.div(place, width, rounding_mode="floor"), place % width], dim=1).float()
    counts = torch.tensor([0, *(len(row.anchor) for row in rows)], device=key.device)
    return ReducedTokens(
        features=torch.cat([row.features for row in rows]).to(tokens.features.dtype),
        ptr=counts.cumsum(0),
        frame=frame.to(torch.int16),
        anchor=key.masked_fill(cls, -1).to(torch.int32),
        kind=kind,
        size=torch.cat([row.size for row in rows]),
        position=position.masked_fill(cls[:, None], -1),
        owner=torch.cat([row.holder[:, 0] for row in rows]).to(torch.int32),
    )


def _with_cls(tokens: VisualTokens, part: ClipTokens, start: int, end: int) -> ClipTokens:
    """Return a clip's tokens with its CLS rows between them; the anchor of frame f's row is -1 - f."""
    if tokens.cls is None:
        return part
    frames = torch.arange(end - start, device=part.anchor.device)
    time = torch.cat([torch.div(part.anchor, tokens.features.shape[1], rounding_mode="floor"), frames])
    order = (2 * time + (torch.arange(len(time), device=time.device) < len(part.anchor))).argsort(stable=True)
    return ClipTokens(
        features=torch.cat([part.features, tokens.cls[start:end].float()])[order],
        anchor=torch.cat([part.anchor, -1 - frames])[order],
        kind=torch.cat([part.kind, torch.full_like(frames, CLS, dtype=torch.uint8)])[order],
        holder=pad(order.argsort(), (0, 1), value=-1)[part.holder],
    )
