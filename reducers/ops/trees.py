"""Trees of patches that continue one another from frame to frame.

Shapes: F frames of one clip, N patches, M = F * N, D width, S segments.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from reducers.ops.clip_budget import summed
from reducers.ops.ranking import normalised


def links(x_FND: Tensor, free_FN: Tensor, segment_F: Tensor, tokens: int, tau: float) -> Tensor:
    """Return the patch of the frame before that each free patch continues (M,), itself where none.

    Links stay inside a segment. Where they would leave it fewer patches than it has tokens, only the likest stand.
    """
    frames, patches, _ = x_FND.shape
    u_FND = normalised(x_FND)
    like_FNN = (u_FND[1:] @ u_FND[:-1].transpose(1, 2)).masked_fill(~free_FN[:-1, None], -torch.inf)
    linkable_FN = free_FN[1:] & (segment_F[1:] == segment_F[:-1])[:, None]
    which_FN = like_FNN.argmax(-1)
    best_FN = like_FNN.gather(-1, which_FN[..., None])[..., 0]
    best_FN = pad(best_FN.masked_fill(~linkable_FN, -torch.inf), (0, 0, 1, 0), value=-torch.inf)
    most_S = segment_F.bincount() * (patches - tokens)
    own_SF = segment_F == torch.arange(len(most_S), device=segment_F.device)[:, None]
    falling_SM = best_FN.masked_fill(~own_SF[..., None], -torch.inf).flatten(1).sort(1, descending=True).values
    limit_S = falling_SM.gather(1, (most_S - 1).clamp(min=0)[:, None])[:, 0].masked_fill(most_S == 0, torch.inf)
    limit_S = torch.where((falling_SM > tau).sum(1) > most_S, limit_S, tau)
    linked_FN = best_FN > limit_S[segment_F][:, None]
    own_M = torch.arange(frames * patches, device=segment_F.device)
    before_FN = pad(which_FN, (0, 0, 1, 0)) + own_M.view(frames, patches)[:, :1] - patches
    return torch.where(linked_FN, before_FN, own_M.view(frames, patches)).flatten()


def trees(x_MD: Tensor, parent_M: Tensor, *, direct: bool) -> tuple[Tensor, Tensor]:
    """Return the root of each patch (M,) and the mean of its tree (M, D); `direct` divides as published (A2)."""
    root_M = parent_M
    for _ in range(len(parent_M).bit_length()):  # twice as far back each time
        root_M = root_M[root_M]
    sum_MD = summed(x_MD, root_M, len(x_MD))
    count_M = (parent_M if direct else root_M).bincount(minlength=len(parent_M))
    return root_M, sum_MD / count_M.clamp(min=1)[:, None]
