"""A contact sheet of a clip, and how much the tower's first block attends to each frame on it.

Shapes: F frames of all clips, n frames of one clip, N = gh * gw patches, S px side.
"""

from math import ceil
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from reducers.methods.hired import frame_scores, sheet_layout
from reducers.ops.attention import cls_attention


def contact_sheet(pixels_n3SS: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return one picture (3, S, S) of all frames in raster order, each squeezed into whole patches; 0 where none is.

    Tiles are the regions over which `reducers.methods.hired.frame_scores` sums. Raises ValueError for more tiles than patches.
    """
    sheet = torch.zeros_like(pixels_n3SS[0])
    layout = sheet_layout(len(pixels_n3SS))
    if layout[0] > grid[0] or layout[1] > grid[1]:
        raise ValueError(f"expected at most {grid[0]} x {grid[1]} tiles, got {layout[0]} x {layout[1]}")
    rows, columns = (_edges(sheet.shape[-1], *axis) for axis in zip(grid, layout, strict=True))
    for number, frame in enumerate(pixels_n3SS):
        row, column = divmod(number, layout[1])
        (top, bottom), (left, right) = rows[row : row + 2], columns[column : column + 2]
        tile = interpolate(frame[None].float(), (bottom - top, right - left), mode="bilinear", antialias=True)
        sheet[:, top:bottom, left:right] = tile[0]
    return sheet


def _edges(side_px: int, patches: int, tiles: int) -> list[int]:
    """Return where tiles begin and end, in pixels, so that patch i lies in tile floor(i * tiles / patches)."""
    return [ceil(tile * patches / tiles) * side_px // patches for tile in range(tiles + 1)]


def sheet_scores(model: Any, pixels_F3SS: Tensor, clip_ptr: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return CLS attention of block 0 (F, 1), float32, summed over heads and over the tile of each frame.

    One picture per clip goes as far as the projections of block 0. Any: the blocks of transformers are untyped.

    Source: docs/methods/frames.md section 6, `frame_score=mosaic`.
    """
    clips = pixels_F3SS.split(clip_ptr.diff().tolist())
    first = model.encoder.layers[0]
    normed = first.layer_norm1(model.pre_layrnorm(model.embeddings(torch.stack([contact_sheet(clip, grid) for clip in clips]))))
    query, key = first.self_attn.q_proj(normed[:, 0]), first.self_attn.k_proj(normed)
    early_VN = cls_attention(query, key, first.self_attn.num_heads, "sum")
    scores = [frame_scores(early_N, len(clip), grid) for early_N, clip in zip(early_VN, clips, strict=True)]
    return torch.cat(scores)[:, None].float()
