"""How methods compare and choose: orders, masks of the best, fences against outliers, rows of length 1.

Shapes: R rows, M places of a row; F frames of one clip, N patches, D width; (..., n) works along the last dimension.
"""

import torch
from torch import Tensor


def ranked(score: Tensor) -> Tensor:
    """Return indices (..., n) by falling score (..., n); the lower index wins a tie."""
    return score.argsort(dim=-1, descending=True, stable=True)


def rank_of(order: Tensor) -> Tensor:
    """Return the place (..., n) that each index has in an order (..., n)."""
    places = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)


def top_mask(score: Tensor, count: Tensor | int) -> Tensor:
    """Return True (..., n) for the `count` largest scores of each row; `count` may differ by row (...,)."""
    limit = count[..., None] if isinstance(count, Tensor) else count
    return rank_of(ranked(score)) < limit


def upper_fence(values: Tensor, factor: float, valid: Tensor | None = None) -> Tensor:
    """Return Q3 + factor * (Q3 - Q1) of each row (..., 1) over its valid values.

    Quartiles interpolate linearly between sorted values, at place p * (n - 1).
    """
    values = values.float()
    if valid is None:
        valid = torch.ones_like(values, dtype=torch.bool)
    rising = values.masked_fill(~valid, torch.inf).sort(dim=-1).values
    last = (valid.sum(-1, keepdim=True) - 1).clamp(min=0)
    lower, upper = (_between(rising, share * last.double()) for share in (0.25, 0.75))
    return upper + factor * (upper - lower)


def _between(rising: Tensor, place: Tensor) -> Tensor:
    below, above = rising.gather(-1, place.floor().long()), rising.gather(-1, place.ceil().long())
    return below + (place - place.floor()).float() * (above - below)


def outlier_count(score_RM: Tensor, factor: float, valid_RM: Tensor) -> Tensor:
    """Return how many valid scores of each row (R,) lie above the fence of the row."""
    return ((score_RM > upper_fence(score_RM, factor, valid_RM)) & valid_RM).sum(1)


def pooled_outlier_count(score_RM: Tensor, factor: float) -> Tensor:
    """Return for each row (R,) the mean count above the fence of the whole batch: an accident of published code.

    It goes through the share of outliers and truncates.
    """
    above = int((score_RM > upper_fence(score_RM.flatten()[None], factor)).sum())
    return torch.full((len(score_RM),), int(score_RM.shape[1] * (above / score_RM.numel())), device=score_RM.device)


def normalised(rows: Tensor) -> Tensor:
    """Return float32 rows (..., D) of length 1; rows of length 0 stay 0."""
    rows = rows.float()
    return rows / rows.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def adjacent_likeness(x_FND: Tensor) -> Tensor:
    """Return the cosine (F - 1, N) of each patch with its own place one frame later, float32; (F - 1,) of vectors (F, D)."""
    u_FND = normalised(x_FND)
    return (u_FND[:-1] * u_FND[1:]).sum(-1)
