"""TRIM: keep the patches that stand out against the question, and the mean of the others.

Text-aware: runs when a question is asked, on stored patches in the joint image-text space, never while encoding.

Shapes: F frames, V clips, N patches, R rows, M patches of a row, D width, P width of the joint space.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from reducers.base import (
    BudgetError,
    Capture,
    Fingerprinted,
    ReducedTokens,
    ReducerError,
    TextQuery,
    VisualTokens,
    check_finite,
)
from reducers.ops.budgets import fixed_count
from reducers.ops.frame_rows import aggregate_slot, rows_of
from reducers.ops.layout import assemble, frames_in_clip, patch_slots
from reducers.ops.ranking import normalised, outlier_count, pooled_outlier_count, top_mask


@dataclass(frozen=True, kw_only=True)
class TrimConfig:
    """Parameters of `trim`."""

    ratio: float | None = None
    """Share of patches kept; default: those above the fence of each row."""
    score: Literal["negative_dot", "cosine"] = "negative_dot"
    """negative_dot keeps what is least like the text, as the published code does; cosine what is most like it."""
    aggregate: bool = True
    """Append the mean of the patches that were not kept."""
    scope: Literal["frame", "clip", "batch"] = "frame"
    """clip: one softmax, one fence and one mean over all frames. batch: published accident, needs compat."""
    iqr_factor: float = 1.5
    """An outlier lies above Q3 + iqr_factor * (Q3 - Q1)."""
    compat: bool = False
    """Allow published accidents."""

    def __post_init__(self) -> None:
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise BudgetError(f"expected ratio in (0, 1], got {self.ratio}")
        if not self.iqr_factor >= 0:
            raise BudgetError(f"expected iqr_factor of at least 0, got {self.iqr_factor}")
        if self.scope == "batch" and not self.compat:
            raise ReducerError("scope=batch is a published accident: add compat=true")


def text_scores(v_FNP: Tensor, text_FP: Tensor, score: str) -> Tensor:
    """Return how much each patch speaks for being kept (F, N), float32: the higher the better."""
    v_FNP, text_FP = v_FNP.float(), text_FP.float()
    if score == "cosine":
        return (normalised(v_FNP) @ normalised(text_FP)[..., None])[..., 0]
    return -(v_FNP @ text_FP[..., None])[..., 0]


@dataclass(frozen=True)
class Trim(Fingerprinted):
    """Keeps the patches whose likeness to the question is an outlier, and the mean of the rest.

    Source: FreedomIntelligence/TRIM, COLING 2025; docs/methods/frames.md section 5.6.
    Departs: the fence is per row, published code pools it over the batch (T4); nothing kept or everything kept is no error; the
    input's type stays (T5).
    """

    config: TrimConfig
    name: ClassVar[str] = "trim"
    version: ClassVar[int] = 1
    needs_text: ClassVar[bool] = True
    needs: ClassVar[frozenset[Capture]] = frozenset()

    def reduce(self, tokens: VisualTokens, text: TextQuery | None = None) -> ReducedTokens:
        """Return kept patches ascending, then the mean of the others, row by row.

        Raises ReducerError without a question, without patches in its space, or on a value that is not finite.
        """
        if tokens.clip_space is None or text is None:
            raise ReducerError("trim needs a question and patches in the joint image-text space of the same CLIP")
        check_finite(tokens)
        _check_text(text.embedding, len(tokens.clip_ptr) - 1, tokens.clip_space.shape[-1])
        clip_F, _ = frames_in_clip(tokens.clip_ptr)
        score_FN = text_scores(tokens.clip_space, text.embedding[clip_F], self.config.score)
        scope = "clip" if self.config.scope == "clip" else "frame"
        (x_RMD, score_RM1), valid_RM = rows_of(tokens, [tokens.features.float(), score_FN[..., None]], scope)
        share_RM = score_RM1[..., 0].masked_fill(~valid_RM, -torch.inf).softmax(-1)
        kept_RM = self._kept(share_RM, valid_RM)
        return self._assembled(tokens, x_RMD, kept_RM, valid_RM, scope)

    def _kept(self, share_RM: Tensor, valid_RM: Tensor) -> Tensor:
        """Return which patches of each row are kept (R, M)."""
        c = self.config
        if c.ratio is not None:
            count_R = fixed_count(valid_RM, c.ratio)
        elif c.scope == "batch":
            count_R = pooled_outlier_count(share_RM, c.iqr_factor)
        else:
            count_R = outlier_count(share_RM, c.iqr_factor, valid_RM)
        count_R = count_R if c.aggregate else count_R.clamp(min=1)
        return top_mask(share_RM.masked_fill(~valid_RM, -torch.inf), count_R) & valid_RM

    def _assembled(self, tokens: VisualTokens, x_RMD: Tensor, kept_RM: Tensor, valid_RM: Tensor, scope: str) -> ReducedTokens:
        rest_RM = valid_RM & ~kept_RM
        kept = patch_slots(x_RMD, kept_RM)
        slot_RM = torch.where(kept_RM, kept.anchor, -1)
        if not self.config.aggregate:
            return assemble(tokens, [kept], slot_RM, scope=scope)
        count_R1 = rest_RM.sum(1, keepdim=True)
        mean = aggregate_slot(tokens, x_RMD, kept.size / count_R1.clamp(min=1), rest_RM, scope)
        mean = replace(mean, valid=count_R1 > 0)
        slot_RM = torch.where(rest_RM, x_RMD.shape[1], slot_RM)
        return assemble(tokens, [kept, mean], slot_RM, scope=scope)


def _check_text(text_VP: Tensor, clips: int, width: int) -> None:
    """Raise ReducerError unless there is one finite text per clip, in the space of the patches."""
    if text_VP.shape != (clips, width):
        raise ReducerError(f"expected text ({clips}, {width}), got {tuple(text_VP.shape)}")
    bad_V = ~text_VP.isfinite().all(dim=1)
    if bool(bad_V.any()):
        clip = int(bad_V.nonzero()[0])
        raise ReducerError(f"the text of clip {clip} holds a value that is not finite")
