"""Run the blocks of a CLIP tower with token merging between attention and MLP: fewer rows from block to block.

Shapes: F frames, T rows now, N patches and CLS at first, h heads, d width of a head, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from reducers.methods.tome import match, merge
from reducers.ops.attention import mean_over_heads


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What is left after some blocks."""

    rows: Tensor
    """(F, T, D), CLS first."""
    size: Tensor
    """(F, T) float32: rows of the beginning behind each."""
    slot: Tensor
    """(F, 1 + N) int64: where each row of the beginning is."""


def merge_blocks(blocks: Sequence[Any], hidden: Tensor, steps: Sequence[int], *, prop_attn: bool = True) -> Merged:
    """Run blocks on rows (F, 1 + N, D), merging `steps[b]` rows in block b. Any: the blocks of transformers are untyped."""
    frames, rows, _ = hidden.shape
    size = torch.ones(frames, rows, device=hidden.device)
    slot = torch.arange(rows, device=hidden.device).expand(frames, -1)
    for block, count in zip(blocks, steps, strict=True):
        weight = size if prop_attn and hidden.shape[1] < rows else None
        attended, key = attend(block.self_attn, block.layer_norm1(hidden), weight)
        hidden = hidden + attended
        if count > 0:
            found = match(mean_over_heads(key, block.self_attn.num_heads), count, class_token=True)
            hidden, size = merge(hidden, size, found)
            slot = found.slot.gather(1, slot)
        hidden = hidden + block.mlp(block.layer_norm2(hidden))
    return Merged(rows=hidden, size=size, slot=slot)


def attend(attention: Any, normed: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the output of an attention module and its keys (F, T, D); rows count by size where sizes are given."""
    frames, rows, width = normed.shape
    query, key, value = attention.q_proj(normed), attention.k_proj(normed), attention.v_proj(normed)
    q, k, v = (part.view(frames, rows, attention.num_heads, -1).transpose(1, 2) for part in (query, key, value))
    bias = None if size is None else size.log().to(normed.dtype)[:, None, None, :]
    mixed = scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return attention.out_proj(mixed.transpose(1, 2).reshape(frames, rows, width)), key
