"""Frames one by one, or the frames of a clip side by side as one row: the two scopes of methods that were made for images.

Shapes: F frames, V clips, N patches, R rows (F or V), M = N or (longest clip) * N places, K some of them, D width.
"""

import torch
from torch import Tensor

from reducers.base import AGGREGATE, VisualTokens
from reducers.ops.layout import Slots, clip_frames, frames_in_clip


def taken(x_RMD: Tensor, index_RK: Tensor) -> Tensor:
    """Return the places of each row that an index (R, K) names (R, K, D)."""
    return x_RMD.gather(1, index_RK[..., None].expand(-1, -1, x_RMD.shape[-1]))


def rows_of(tokens: VisualTokens, values: list[Tensor], scope: str) -> tuple[list[Tensor], Tensor]:
    """Return values (F, N, ...) laid out as rows (R, M, ...), and which places of the rows are real (R, M)."""
    if scope == "frame":
        return values, torch.ones(values[0].shape[:2], dtype=torch.bool, device=values[0].device)
    index, real = clip_frames(tokens.clip_ptr)
    patches = tokens.features.shape[1]
    return [value[index].flatten(1, 2) for value in values], real[..., None].expand(-1, -1, patches).flatten(1)


def aggregate_slot(tokens: VisualTokens, x_RMD: Tensor, weight_RM: Tensor, rest_RM: Tensor, scope: str) -> Slots:
    """Return one slot per row: the weighted sum of the patches that are left over, at their mean position."""
    size_R = rest_RM.sum(1, keepdim=True).float()
    rows, patches = len(x_RMD), tokens.features.shape[1]
    index_M = torch.arange(x_RMD.shape[1], device=x_RMD.device)
    frame_RM = torch.div(index_M, patches, rounding_mode="floor").expand(rows, -1)
    if scope == "frame":
        frame_RM = frames_in_clip(tokens.clip_ptr)[1][:, None].expand(-1, patches)
    row_M = torch.div(index_M % patches, tokens.grid[1], rounding_mode="floor")
    place_RM3 = torch.stack([frame_RM, row_M.expand(rows, -1), (index_M % tokens.grid[1]).expand(rows, -1)], dim=-1)
    mean_R3 = (place_RM3 * rest_RM[..., None]).sum(1) / size_R.clamp(min=1)
    nowhere = torch.cat([place_RM3[:, 0, :1].float(), torch.full((rows, 2), -1.0, device=x_RMD.device)], dim=1)
    return Slots(
        features=((weight_RM * rest_RM)[:, None] @ x_RMD),
        valid=torch.ones(rows, 1, dtype=torch.bool, device=x_RMD.device),
        anchor=torch.full((rows, 1), -1, device=x_RMD.device),
        kind=AGGREGATE,
        size=size_R,
        position=torch.where(size_R > 0, mean_R3, nowhere)[:, None],
    )
