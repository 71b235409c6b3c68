"""A batch of clips on its way through the tower: frames together, clips to leave out, tokens in the joint space.

Shapes: V clips, F frames of all clips together, S px side, P joint image-text space.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import PipelineError
from pipeline.models.clip_space import JointSpace
from reducers.base import ReducedTokens, VisualTokens
from reducers.ops.layout import frames_in_clip


def frames_of(clips: Sequence[bytes], side_px: int, *, locked: bool = False) -> tuple[Tensor, list[int]]:
    """Return the frames of all clips (F, S, S, 3), uint8, and how many each has.

    Args:
        clips: F*S*S*3 bytes each.
        side_px: S.
        locked: in page-locked memory, from which a GPU copies while the host goes on.

    Raises:
        PipelineError: the decode stage cut frames to another side.
    """
    for clip in clips:
        if len(clip) == 0 or len(clip) % (side_px * side_px * 3):
            raise PipelineError(f"expected frames of {side_px} x {side_px} px from the decode stage, got {len(clip)} bytes")
    pixels = [np.frombuffer(clip, dtype=np.uint8).reshape(-1, side_px, side_px, 3) for clip in clips]
    lengths = [len(some) for some in pixels]
    frames = torch.empty(sum(lengths), side_px, side_px, 3, dtype=torch.uint8, pin_memory=locked)
    np.concatenate(pixels, out=frames.numpy())
    return frames, lengths


def ends_of(lengths: Sequence[int]) -> Tensor:
    """Return where the frames of each clip end (V + 1,), int64, 0 in front."""
    return torch.tensor([0, *lengths]).cumsum(0)


def not_finite(seen: VisualTokens) -> set[int]:
    """Return the clips with a feature or a capture that is not finite."""
    values = [seen.features, *seen.captures.values(), *([] if seen.cls is None else [seen.cls])]
    good_F = torch.stack([value.flatten(1).isfinite().all(1) for value in values]).all(0)
    clip_F, _ = frames_in_clip(seen.clip_ptr)
    return set(clip_F[~good_F].tolist())


def some_clips(seen: VisualTokens, kept: Sequence[int]) -> VisualTokens:
    """Return some clips of a batch."""
    bounds = seen.clip_ptr.tolist()
    frames = torch.cat([torch.arange(bounds[at], bounds[at + 1]) for at in kept]).to(seen.features.device)
    return replace(
        seen,
        features=seen.features[frames],
        cls=None if seen.cls is None else seen.cls[frames],
        clip_ptr=ends_of([bounds[at + 1] - bounds[at] for at in kept]).to(seen.clip_ptr.device),
        captures={need: value[frames] for need, value in seen.captures.items()},
    )


def in_joint_space(space: JointSpace, tower: Any, seen: VisualTokens, reduced: ReducedTokens) -> Sequence[Tensor]:
    """Return the vector of each token's anchor, clip by clip (S, P), in host memory; 0 for a token without one.

    Any: the classes of transformers are untyped.
    """
    found, ends = [], reduced.ptr.tolist()
    for (start, end), (first, last) in zip(pairwise(seen.clip_ptr.tolist()), pairwise(ends), strict=True):
        vectors = space.project(tower, seen.features[start:end].flatten(0, 1))
        anchor = reduced.anchor[first:last].long()
        found.append(vectors[anchor.clamp(min=0)].masked_fill((anchor < 0)[:, None], 0))
    return torch.cat(found).cpu().split([last - first for first, last in pairwise(ends)])
