"""Cutting a clip over time: segments between unlike neighbours, and windows in which patches stand still.

Shapes: F frames of one clip, N patches, W windows.
"""

from math import ceil

import torch
from torch import Tensor

from reducers.ops.ranking import top_mask


def segment_of(likeness_F: Tensor, segments: int | None, tau: float) -> Tensor:
    """Return the segment of each frame (F,): cut at the `segments - 1` least like neighbours, and at all below tau.

    Args:
        likeness_F: (F - 1,) likeness of each frame to the next.
        segments: least number of segments; None for a quarter of the frames, rounded up.
        tau: frames that are less alike than this are always cut apart.
    """
    segments = segments or ceil((len(likeness_F) + 1) / 4)
    cut_F = top_mask(-likeness_F, segments - 1) | (likeness_F < tau)
    return torch.cat([cut_F.new_zeros(1), cut_F]).cumsum(0)


def windows(same_FN: Tensor, longest: int) -> tuple[list[tuple[int, int]], Tensor]:
    """Cut a clip into the windows in which most patch copies can be saved.

    Args:
        same_FN: (F - 1, N) bool, which patches are the same in the next frame.
        longest: most frames of a window.

    Returns:
        First and last frame of each window, and which of its patches stand still (W, N); none do in a single frame.
    """
    frames = len(same_FN) + 1
    still_N, run = same_FN.new_ones(frames, same_FN.shape[1]), {}
    for length in range(1, min(longest, frames)):
        still_N = still_N[: frames - length] & same_FN[length - 1 :]
        run[length] = (still_N, (length * still_N.sum(1)).tolist())
    best, cut = [0], [0]
    for end in range(frames):
        gains = [best[end], *(best[end - length] + run[length][1][end - length] for length in run if length <= end)]
        best.append(max(gains))
        cut.append(end - gains.index(best[-1]))  # ties: single frames first, then the shorter window
    spans: list[tuple[int, int]] = []
    while (end := spans[0][0] if spans else frames) > 0:
        spans.insert(0, (cut[end], end - 1))
    none_N = torch.zeros_like(still_N[0])
    return spans, torch.stack([run[e - s][0][s] if e > s else none_N for s, e in spans])


def saved(spans: list[tuple[int, int]], still_WN: Tensor) -> int:
    """Return how many patches are copies of another frame of their window."""
    return sum((end - start) * count for (start, end), count in zip(spans, still_WN.sum(1).tolist(), strict=True))
