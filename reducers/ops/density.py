"""Density peaks: points with many near ones and far from any denser one, and merging the others into them.

Shapes: R rows of n points, D width.
"""

import torch
from torch import Tensor

from reducers.ops.ranking import top_mask


def density_peaks(gap_Rnn: Tensor, valid_Rn: Tensor, neighbours_R: Tensor) -> Tensor:
    """Return how much each valid point of a row is a centre (R, n), float64: density times distance to a denser point.

    Density is exp(-mean squared distance to the `neighbours` nearest, itself included); without a denser point the
    largest distance of the row counts.

    Source: docs/methods/video.md section 5, DPC. Departs: no noise against ties, the lower index wins.
    """
    pair_Rnn = valid_Rn[:, :, None] & valid_Rn[:, None]
    most = max(1, int(neighbours_R.max())) if len(neighbours_R) else 1
    near_Rnk = gap_Rnn.masked_fill(~pair_Rnn, torch.inf).topk(most, largest=False).values
    outside_Rnk = (torch.arange(most, device=gap_Rnn.device) >= neighbours_R[:, None, None]).expand_as(near_Rnk)
    mean_Rn = near_Rnk.square().masked_fill(outside_Rnk, 0).sum(-1) / neighbours_R[:, None]
    density_Rn = (-mean_Rn).exp().masked_fill(~valid_Rn, 0)
    farthest_R = gap_Rnn.masked_fill(~pair_Rnn, 0).amax((1, 2))
    denser_Rnn = pair_Rnn & (density_Rn[:, None] > density_Rn[:, :, None])
    apart_Rn = gap_Rnn.masked_fill(~denser_Rnn, torch.inf).amin(-1).minimum(farthest_R[:, None])
    return (density_Rn * apart_Rn).masked_fill(~valid_Rn, -torch.inf)


def distances(x_RnD: Tensor) -> Tensor:
    """Return distances over sqrt(D) (R, n, n), float64 of float32 precision: equal points are at 0 and tie exactly."""
    x_RnD = x_RnD.double()
    square_Rn = x_RnD.square().sum(-1)
    both_Rnn = square_Rn[:, :, None] + square_Rn[:, None]
    apart_Rnn = (x_RnD @ x_RnD.transpose(1, 2)).mul_(-2).add_(both_Rnn)  # float32 would put points 0.05 from themselves
    apart_Rnn.masked_fill_(apart_Rnn < 1e-12 * both_Rnn, 0)
    return apart_Rnn.div_(x_RnD.shape[-1]).sqrt_().float().double()


def dense_merge(
    x_RnD: Tensor, valid_Rn: Tensor, centres_R: Tensor, neighbours_R: Tensor, beta: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge the valid points of each row into its densest ones, which keep a weight of beta, or their even share.

    Returns:
        Centres (R, n) bool, their values (R, n, D), and the centre of each valid point (R, n). A row without a centre stays.
    """
    some_R = centres_R > 0
    if bool(some_R.all()):
        return _dense_merge(x_RnD, valid_Rn, centres_R, neighbours_R, beta)
    centre_Rn, value_RnD = torch.zeros_like(valid_Rn), x_RnD.clone()
    nearest_Rn = torch.arange(x_RnD.shape[1], device=x_RnD.device).repeat(len(x_RnD), 1)
    if bool(some_R.any()):
        part = _dense_merge(x_RnD[some_R], valid_Rn[some_R], centres_R[some_R], neighbours_R[some_R], beta)
        centre_Rn[some_R], value_RnD[some_R], nearest_Rn[some_R] = part
    return centre_Rn, value_RnD, nearest_Rn


def _dense_merge(
    x_RnD: Tensor, valid_Rn: Tensor, centres_R: Tensor, neighbours_R: Tensor, beta: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    gap_Rnn = distances(x_RnD)
    centre_Rn = top_mask(density_peaks(gap_Rnn, valid_Rn, neighbours_R), centres_R) & valid_Rn
    index_n = torch.arange(x_RnD.shape[1], device=x_RnD.device)
    nearest_Rn = gap_Rnn.masked_fill(~centre_Rn[:, None], torch.inf).argmin(-1)
    alone_Rn = centre_Rn | ~centre_Rn.any(1, keepdim=True)  # without a centre nobody holds a point
    nearest_Rn = torch.where(alone_Rn, index_n, nearest_Rn)
    joined_Rnn = (nearest_Rn[:, None] == index_n[:, None]) & (valid_Rn & ~centre_Rn)[:, None]
    count_Rn1 = joined_Rnn.sum(-1, keepdim=True)
    mean_RnD = joined_Rnn.float() @ x_RnD / count_Rn1.clamp(min=1)
    own_Rn1 = 1 / (1 + count_Rn1) if beta is None else torch.where(count_Rn1 > 0, beta, 1.0)
    return centre_Rn, own_Rn1 * x_RnD + (1 - own_Rn1) * mean_RnD, nearest_Rn
