"""FastVID: keep salient patches of every frame, merge the others into dense spots of a few frames of their segment.

Shapes: F frames of one clip, N patches, D width, R rows of n points; U free patches per frame,
A anchor frames, m contexts in each, C contexts, K tokens, H holders.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from reducers.base import CONTEXTUAL, KEPT, BudgetError, Capture, Fingerprinted, ReducedTokens, TextQuery, VisualTokens
from reducers.ops.clip_budget import ATTENTION, Budget, Clip, ClipConfig, ClipTokens, reduce_clips, summed
from reducers.ops.density import density_peaks, distances
from reducers.ops.ranking import adjacent_likeness, normalised, ranked, top_mask
from reducers.ops.segments import segment_of

NEIGHBOURS = 4
"""Points that the density of a patch is taken from."""


@dataclass(frozen=True, kw_only=True)
class FastVidConfig(ClipConfig):
    """Parameters of `fastvid`. Published for 32 frames: at least 8 segments."""

    segments: int | None = None
    """c, least number of segments. Default: a quarter of the frames, rounded up."""
    tau: float = 0.9
    """Frames that are less alike than this are always cut apart."""
    context_share: float = 0.4
    """d, share of a frame's tokens that merge others."""
    stride: int = 4
    """p, every p-th frame of a segment, counted from its end, holds contexts."""
    beta: float = 0.6
    """Least weight of a context's own value."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.context_share <= 1 or not 0 <= self.beta <= 1:
            raise BudgetError(f"expected context_share and beta in [0, 1], got {self.context_share} and {self.beta}")
        if self.stride < 1 or (self.segments is not None and self.segments < 1):
            raise BudgetError(f"expected stride and segments of at least 1, got {self.stride} and {self.segments}")


def anchor_frames(segment_F: Tensor, stride: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return which frames hold contexts (F,) bool, and the frames and anchor frames of each frame's segment (F,)."""
    lengths = segment_F.bincount()
    length_F, last_F = lengths[segment_F], (lengths.cumsum(0) - 1)[segment_F]
    anchor_F = (last_F - torch.arange(len(segment_F), device=segment_F.device)) % stride == 0
    return anchor_F, length_F, (length_F + stride - 1) // stride


def fastvid(clip: Clip, budget: Budget, config: FastVidConfig) -> ClipTokens:
    """Return salient patches and contexts of one clip, sorted by anchor.

    Source: LunarShen/FastVID at a40a109; docs/methods/video.md section 5.3.
    Departs: no more cuts than frames and no more contexts than free patches, what is left over goes to the best
    attended (A7).
    """
    patches = clip.x.shape[1]
    segment_F = segment_of(adjacent_likeness(clip.g), config.segments, config.tau)
    anchor_F, length_F, anchors_F = anchor_frames(segment_F, config.stride)
    tokens = int(patches * budget.ratio)
    contexts = int(tokens * config.context_share)
    salient_FN = top_mask(clip.a, tokens - contexts)
    contexts_F = (contexts * length_F // anchors_F).clamp(max=patches - tokens + contexts) * anchor_F
    context_FN = _contexts(clip.x, salient_FN, contexts_F)
    anchor_K = (salient_FN | context_FN).flatten().nonzero()[:, 0]
    holder_MH = _holders(clip.x, salient_FN, context_FN, segment_F)
    mean_KD, count_K1 = _means(clip.x.flatten(0, 1), holder_MH, len(anchor_K))
    own_K1 = (1 / (count_K1 + 1)).clamp(min=config.beta)
    x_KD, merged_K = clip.x.flatten(0, 1)[anchor_K], context_FN.flatten()[anchor_K]
    return ClipTokens(
        features=torch.where(merged_K[:, None], own_K1 * x_KD + (1 - own_K1) * mean_KD, x_KD),
        anchor=anchor_K,
        kind=torch.where(merged_K, CONTEXTUAL, KEPT).to(torch.uint8),
        holder=holder_MH,
    )


def _contexts(x_FND: Tensor, salient_FN: Tensor, contexts_F: Tensor) -> Tensor:
    """Choose as many centres of each frame as it has contexts, among the patches that are not salient (F, N) bool."""
    context_FN = torch.zeros_like(salient_FN)
    host_A = contexts_F.nonzero()[:, 0]
    free_AU = (~salient_FN[host_A]).nonzero()[:, 1].view(len(host_A), int((~salient_FN[0]).sum()))
    x_AUD = x_FND[host_A[:, None], free_AU]
    near_A = torch.full_like(host_A, min(NEIGHBOURS, free_AU.shape[1]))
    score_AU = density_peaks(distances(x_AUD), torch.ones_like(free_AU, dtype=torch.bool), near_A)
    chosen_AU = top_mask(score_AU, contexts_F[host_A])
    context_FN[host_A] = context_FN[host_A].scatter(1, free_AU, chosen_AU)
    return context_FN


def _holders(x_FND: Tensor, salient_FN: Tensor, context_FN: Tensor, segment_F: Tensor) -> Tensor:
    """Return the tokens that hold each patch, the likest first (M, H), -1 for none.

    A salient patch holds itself. Any other is held by its likest context in each anchor frame of its segment,
    contexts too.
    """
    patches = x_FND.shape[1]
    token_M = (salient_FN | context_FN).flatten().cumsum(0) - 1
    own_M1 = torch.where(salient_FN.flatten(), token_M, -1)[:, None]
    frame_C, patch_C = context_FN.nonzero(as_tuple=True)
    if len(frame_C) == 0:
        return own_M1
    host_A, counts_A = frame_C.unique_consecutive(return_counts=True)
    place_m = torch.arange(int(counts_A.max()), device=host_A.device)
    column_Am = ((counts_A.cumsum(0) - counts_A)[:, None] + place_m).clamp(max=len(frame_C) - 1)
    u_FND = normalised(x_FND)
    like_MC = u_FND.flatten(0, 1) @ u_FND[frame_C, patch_C].T
    id_C = frame_C * patches + patch_C
    like_MC[id_C, torch.arange(len(id_C), device=id_C.device)] = torch.inf  # a context holds itself, whatever its twins do
    like_MAm = like_MC[:, column_Am].masked_fill(place_m >= counts_A[:, None], -torch.inf)
    which_MA = like_MAm.argmax(-1)
    here_MA = (segment_F[host_A] == segment_F[:, None]).repeat_interleave(patches, 0) & ~salient_FN.flatten()[:, None]
    best_MA = like_MAm.gather(-1, which_MA[..., None])[..., 0].masked_fill(~here_MA, -torch.inf)
    held_MA = token_M[id_C][column_Am.T.gather(0, which_MA)].masked_fill(~here_MA, -1)
    most = max(1, int(here_MA.sum(1).max()))
    held_MH = held_MA.gather(1, ranked(best_MA)[:, :most])
    held_MH[:, :1] = held_MH[:, :1].maximum(own_M1)
    return held_MH


def _means(x_MD: Tensor, holder_MH: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Return the mean of what each token holds (K, D), and how many patches that is (K, 1)."""
    slot_HM = holder_MH.T % (tokens + 1)
    count_K1 = slot_HM.flatten().bincount(minlength=tokens + 1)[:-1, None]
    sum_KD = torch.stack([summed(x_MD, slot_M, tokens + 1) for slot_M in slot_HM]).sum(0)
    return sum_KD[:-1] / count_K1.clamp(min=1), count_K1


@dataclass(frozen=True)
class FastVid(Fingerprinted):
    """Keeps salient patches, merges the rest of each segment into dense patches of every p-th frame.

    Source: as `fastvid`.
    Departs: at least a quarter of the frames are segments; published counts 8 at 32 frames.
    """

    config: FastVidConfig
    name: ClassVar[str] = "fastvid"
    version: ClassVar[int] = 1
    needs: ClassVar[frozenset[Capture]] = frozenset({ATTENTION})

    def reduce(self, tokens: VisualTokens, text: TextQuery | None = None) -> ReducedTokens:
        """Return salient patches and contexts of each clip, ascending."""
        return reduce_clips(tokens, self.config, partial(fastvid, config=self.config))
