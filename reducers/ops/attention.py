"""Attention scores from captured queries and keys, without attention maps.

Shapes: F frames, T = N + 1 rows with CLS at row 0, N patches, D width, h heads, d = D / h.
"""

from typing import Literal

import torch
from torch import Tensor


def cls_attention(q_cls_FD: Tensor, k_FTD: Tensor, heads: int, combine: Literal["concat", "sum", "mean"]) -> Tensor:
    """Return how much CLS attends to each patch (F, N), float32.

    The softmax runs over all T columns, then the CLS column is dropped without renormalising. `concat`: one softmax over
    the concatenated heads with scale D**-0.5. `sum` and `mean`: a softmax per head with scale d**-0.5.

    Source: docs/methods/frames.md sections 2 and 3; PruMerge uses `concat`, VisionZip and HiRED `sum`.
    """
    frames, rows, width = k_FTD.shape
    groups = 1 if combine == "concat" else heads
    q = q_cls_FD.float().view(frames, groups, 1, width // groups)
    k = k_FTD.float().view(frames, rows, groups, width // groups).transpose(1, 2)
    logits = (q @ k.transpose(-1, -2)) * (width // groups) ** -0.5
    scores_FhN = logits.softmax(dim=-1)[:, :, 0, 1:]
    return scores_FhN.mean(1) if combine == "mean" else scores_FhN.sum(1)


def received_attention(q_FND: Tensor, k_FND: Tensor, heads: int) -> Tensor:
    """Return how much attention each patch receives (F, N), float32: the mean over heads and queries of its column.

    For towers without CLS. One head at a time: the map of all heads is never stored.
    """
    frames, patches, width = k_FND.shape
    received = torch.zeros(frames, patches, device=k_FND.device)
    for q, k in zip(q_FND.chunk(heads, dim=-1), k_FND.chunk(heads, dim=-1), strict=True):
        logits = q.float() @ k.float().transpose(-1, -2) * (width // heads) ** -0.5
        received += logits.softmax(dim=-1).mean(dim=1)
    return received / heads


def mean_over_heads(k_FND: Tensor, heads: int) -> Tensor:
    """Return keys averaged over heads (F, N, d), float32."""
    frames, patches, width = k_FND.shape
    return k_FND.float().view(frames, patches, heads, width // heads).mean(2)
