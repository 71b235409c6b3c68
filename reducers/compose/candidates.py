"""What the first part of a composition hands to the second: places that may become tokens, and how many of them shall.

Shapes: F frames of one clip, N patches, M = F * N, R rows (frames, or windows of frames as one), D width, K tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reducers.base import CONTEXTUAL, KEPT
from reducers.ops.clip_budget import Clip, ClipTokens


@dataclass(frozen=True, kw_only=True)
class Places:
    """Rows of N places. A place is one patch, or several that were merged."""

    x: Tensor
    """(R, N, D) float32, what a place looks like."""
    size: Tensor
    """(R, N) float32: patches behind each place, 0 where there is none."""
    open: Tensor
    """(R, N) bool: places that may become tokens."""
    free: Tensor
    """(R, N) bool: places that a token may take in; all open ones among them."""
    budget: Tensor
    """(R,) int64: tokens of each row, no more than open places."""
    spans: Sequence[tuple[int, int]]
    """First and last frame of each row. Scores and keys of a row are their mean, anchors lie in the first."""
    place: Tensor
    """(M,) int64: row * N + column where each patch went, -1 if nowhere."""
    by_first: bool = False
    """The first part says who merges these rows."""

    def over_frames(self, values_FN: Tensor) -> Tensor:
        """Return the mean of values (F, N, ...) over the frames of each row (R, N, ...), float32."""
        return torch.stack([values_FN[start : end + 1].float().mean(0) for start, end in self.spans])


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Which places became tokens."""

    token: Tensor
    """(R, N) bool."""
    value: Tensor
    """(R, N, D), read where there is a token."""
    kind: Tensor
    """(R, N) uint8."""
    held: Tensor
    """(R, N) int64: column of the token of the row that holds each place, -1 if dropped."""


def kind_of(kept_RN: Tensor, size_RN: Tensor, changed: int) -> Tensor:
    """Return KEPT where a patch is kept as it is, CONTEXTUAL where a merged place is, `changed` elsewhere (R, N) uint8."""
    plain_RN = torch.where(size_RN > 1, CONTEXTUAL, KEPT)
    return torch.where(kept_RN, plain_RN, changed).to(torch.uint8)


def clip_tokens(clip: Clip, groups: Sequence[tuple[Places, Spent]]) -> ClipTokens:
    """Return the tokens of all rows, those of later groups behind."""
    patches = clip.a.shape[1]
    holder_M = torch.full((clip.a.numel(),), -1, device=clip.a.device)
    anchors, taken = [], 0
    for places, spent in groups:
        token_P = spent.token.flatten()
        slot_P = torch.where(token_P, token_P.cumsum(0) - 1 + taken, -1).view_as(spent.held)
        held_P = torch.where(spent.held >= 0, slot_P.gather(1, spent.held.clamp(min=0)), -1).flatten()
        holder_M = torch.where(places.place >= 0, held_P[places.place.clamp(min=0)], holder_M)
        first_R1 = torch.tensor([[start] for start, _ in places.spans], device=clip.a.device)
        anchors.append((first_R1 * patches + torch.arange(patches, device=clip.a.device))[spent.token])
        taken += len(anchors[-1])
    return ClipTokens(
        features=torch.cat([spent.value[spent.token] for _, spent in groups]),
        anchor=torch.cat(anchors),
        kind=torch.cat([spent.kind[spent.token] for _, spent in groups]),
        holder=holder_M[:, None],
    )
