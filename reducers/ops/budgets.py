"""Sharing a total over parts in whole numbers."""

import torch
from torch import Tensor

from reducers.base import BudgetError


def allocate(total: int, weights: Tensor, cap: int | Tensor) -> Tensor:
    """Share `total` over parts in proportion to their weights, none above `cap`, by largest remainder.

    Args:
        total: tokens to hand out; what does not fit under the caps is not handed out.
        weights: (parts,), at least 0. All zero counts as all equal.
        cap: most that one part can take; one number, or one for each part (parts,).

    Returns:
        Budgets (parts,) int64 that sum to min(total, sum of caps). Ties go to the lower part.

    Raises:
        BudgetError: a weight is negative or not finite.

    Source: docs/methods/frames.md section 6, in double precision.
    """
    share = weights.double()
    if not bool((share.isfinite() & (share >= 0)).all()):
        raise BudgetError(f"expected finite weights of at least 0, got {weights.tolist()}")
    share = share if float(share.sum()) > 0 else torch.ones_like(share)
    exact = total * share / share.sum()
    caps = torch.as_tensor(cap, device=share.device).expand(len(share))
    budgets = exact.floor().long().minimum(caps)
    left = min(total, int(caps.sum())) - int(budgets.sum())
    order = (exact - exact.floor()).argsort(descending=True, stable=True)
    while left > 0:
        open_parts = order[(budgets < caps)[order]][:left]
        budgets[open_parts] += 1
        left -= len(open_parts)
    return budgets


def fixed_count(valid_RM: Tensor, ratio: float) -> Tensor:
    """Return int(M * ratio) of each row (R,) int64, in double precision; M counts the valid places."""
    return (valid_RM.sum(1).double() * ratio).long()


def share_to_count(patches: int, ratio: float) -> int:
    """Return int(patches * ratio), in double precision: 0.2 * 256 is 51."""
    return int(patches * ratio)
