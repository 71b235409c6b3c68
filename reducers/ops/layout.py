"""From what a method decides for each row to the tokens of all clips, one after another.

Shapes: V clips, F frames (of all clips together), N patches per frame, R rows, K slots of a row, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reducers.base import CLS, KEPT, ReducedTokens, VisualTokens


def frames_in_clip(clip_ptr: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for each frame, its clip (F,) and its number inside the clip (F,)."""
    lengths = clip_ptr[1:] - clip_ptr[:-1]
    clip_F = torch.repeat_interleave(torch.arange(len(lengths), device=clip_ptr.device), lengths)
    return clip_F, torch.arange(int(clip_ptr[-1]), device=clip_ptr.device) - clip_ptr[clip_F]


def clip_frames(clip_ptr: Tensor) -> tuple[Tensor, Tensor]:
    """Return the frames of each clip side by side (V, longest clip), padded with frame 0, and which are real."""
    lengths = clip_ptr[1:] - clip_ptr[:-1]
    numbers = torch.arange(int(lengths.max()), device=clip_ptr.device)
    real = numbers < lengths[:, None]
    return torch.where(real, clip_ptr[:-1, None] + numbers, 0), real


@dataclass(frozen=True, kw_only=True)
class Slots:
    """A block of output slots per row, some of them empty; `assemble` makes ReducedTokens of several blocks.

    Shapes: R rows (frames, or clips for methods that flatten a clip), K slots, D width. The order of blocks and slots is
    the order of tokens.
    """

    features: Tensor
    """(R, K, D)."""
    valid: Tensor
    """(R, K) bool."""
    anchor: Tensor
    """(R, K) int64: patch of the frame, or of the flattened clip; -1 if none."""
    kind: int | Tensor
    """One kind for all, or (R, K)."""
    size: Tensor
    """(R, K) float32."""
    position: Tensor | None = None
    """(R, K, 3) frame in the clip, row and column where they are not the anchor's."""


def assemble(
    tokens: VisualTokens, blocks: Sequence[Slots], slot_RM: Tensor | None = None, *, scope: str = "frame"
) -> ReducedTokens:
    """Lay out blocks row by row.

    Args:
        tokens: what was reduced.
        blocks: output slots, R = F rows for scope "frame", R = V rows for scope "clip".
        slot_RM: for each patch of a row the slot that holds it, counted over the blocks side by side, or -1.
        scope: "frame" or "clip".
    """
    patches = tokens.features.shape[1]
    clip_R, number_R = frames_in_clip(tokens.clip_ptr)
    if scope == "clip":
        clip_R, number_R = torch.arange(len(tokens.clip_ptr) - 1, device=clip_R.device), torch.zeros_like(clip_R)
    valid = torch.cat([block.valid for block in blocks], dim=1)
    anchor = torch.cat([block.anchor for block in blocks], dim=1)
    anchor = torch.where(anchor >= 0, anchor + number_R[: len(anchor), None] * patches, -1)
    kind = torch.cat([_spread(block.kind, block.valid) for block in blocks], dim=1)
    position = torch.cat([_positions(b, number_R, tokens.grid) for b in blocks], dim=1)
    time = torch.div(anchor, patches, rounding_mode="floor")
    time = torch.where(anchor >= 0, time, number_R[: len(anchor), None] if scope == "frame" else -1)
    counts_V = torch.zeros(len(tokens.clip_ptr) - 1, dtype=torch.int64, device=valid.device)
    counts_V.index_add_(0, clip_R, valid.sum(1))
    ptr = torch.cat([counts_V.new_zeros(1), counts_V.cumsum(0)])
    return ReducedTokens(
        features=torch.cat([block.features for block in blocks], dim=1)[valid].to(tokens.features.dtype),
        ptr=ptr,
        frame=time[valid].to(torch.int16),
        anchor=anchor[valid].to(torch.int32),
        kind=kind[valid],
        size=torch.cat([block.size for block in blocks], dim=1)[valid].float(),
        position=torch.where((kind == CLS)[..., None], -1.0, position)[valid],
        owner=None if slot_RM is None else _owners(tokens, slot_RM, valid, ptr[clip_R]),
    )


def _spread(kind: int | Tensor, like: Tensor) -> Tensor:
    if isinstance(kind, Tensor):
        return kind.to(torch.uint8)
    return torch.full(like.shape, kind, dtype=torch.uint8, device=like.device)


def _positions(block: Slots, number_R: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return frame, row and column (R, K, 3) of the anchors; frame only, and -1, where there is no anchor."""
    if block.position is not None:
        return block.position.float()
    patches = grid[0] * grid[1]
    time = number_R[: len(block.anchor), None] + torch.div(block.anchor.clamp(min=0), patches, rounding_mode="floor")
    row, column = torch.div(block.anchor % patches, grid[1], rounding_mode="floor"), block.anchor % grid[1]
    places = torch.stack([row, column], dim=-1).masked_fill((block.anchor < 0)[..., None], -1)
    return torch.cat([time[..., None], places], dim=-1).float()


def _owners(tokens: VisualTokens, slot_RM: Tensor, valid_RK: Tensor, start_R: Tensor) -> Tensor:
    """Turn slots of a row into places inside the clip (F * N,)."""
    place_RK = (valid_RK.flatten().cumsum(0) - 1).view_as(valid_RK) - start_R[: len(valid_RK), None]
    slot = slot_RM.clamp(min=0)
    owner_RM = torch.where((slot_RM >= 0) & valid_RK.gather(1, slot), place_RK.gather(1, slot), -1)
    if len(owner_RM) != len(tokens.features):
        _, real = clip_frames(tokens.clip_ptr)
        owner_RM = owner_RM.view(*real.shape, -1)[real]
    return owner_RM.flatten().to(torch.int32)


def patch_slots(x_RMD: Tensor, mask_RM: Tensor) -> Slots:
    """Return a slot for each patch of a row, unchanged; empty where the mask says no."""
    every_RM = torch.arange(mask_RM.shape[1], device=mask_RM.device).expand_as(mask_RM)
    return Slots(
        features=x_RMD, valid=mask_RM, anchor=every_RM, kind=KEPT, size=torch.ones(mask_RM.shape, device=mask_RM.device)
    )


def keep_patches(tokens: VisualTokens, mask_FN: Tensor) -> ReducedTokens:
    """Return the patches of a mask unchanged, in raster order of each frame."""
    kept = patch_slots(tokens.features, mask_FN)
    return assemble(tokens, [kept], torch.where(mask_FN, kept.anchor, -1))


def cls_slot(cls_FD: Tensor) -> Slots:
    """Return one slot per frame for its CLS row."""
    one = torch.ones(len(cls_FD), 1, device=cls_FD.device)
    nowhere = torch.full((len(cls_FD), 1), -1, device=cls_FD.device)
    return Slots(features=cls_FD[:, None], valid=one.bool(), anchor=nowhere, kind=CLS, size=0 * one)
