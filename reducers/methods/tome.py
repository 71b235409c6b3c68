"""ToMe: merge similar tokens inside the tower, block by block, so that later blocks see fewer of them.

Bipartite soft matching: even rows look for their most similar odd row by key; the best pairs merge to their size-weighted
mean. CLS is row 0 and never merges. Also the maps that tell which patch ended up where.

Shapes: F frames, T rows now, A = ceil(T / 2) even rows, B odd rows, r merged, d width of a head, D width, N patches at first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from reducers.base import MERGED, BudgetError, Capture, Fingerprinted, ReducedTokens, ReducerError, TextQuery, VisualTokens
from reducers.ops.frame_rows import taken
from reducers.ops.layout import Slots, assemble, frames_in_clip
from reducers.ops.ranking import normalised, rank_of, ranked


@dataclass(frozen=True, kw_only=True)
class ToMeConfig:
    """Parameters of `tome`."""

    keep: int | None = None
    """Tokens left of each frame, CLS not counted; 32 unless `r` is given. A block can at most halve them."""
    r: int | None = None
    """Tokens that each block merges, instead of `keep`."""
    inflection: float = 0.0
    """How `r` changes over the blocks: 0 not at all, -1 falls from 2 * r to 0, 1 rises from 0 to 2 * r."""
    prop_attn: bool = True
    """Count a merged row in attention as often as it stands for a patch."""
    order: Literal["produced", "spatial"] = "produced"
    """spatial: by the first patch behind each token."""

    def __post_init__(self) -> None:
        if self.keep is not None and self.r is not None:
            raise BudgetError("expected keep or r, not both")
        object.__setattr__(self, "keep", 32 if self.keep is None and self.r is None else self.keep)
        if (self.keep is not None and self.keep < 1) or (self.r is not None and self.r < 0):
            raise BudgetError(f"expected keep >= 1 or r >= 0, got {self.keep} and {self.r}")
        if not -1 <= self.inflection <= 1 or (self.inflection and self.r is None):
            raise BudgetError(f"expected inflection in [-1, 1], and only with r, got {self.inflection}")


@dataclass(frozen=True, kw_only=True)
class Match:
    """Which rows go where in one merge."""

    slot: Tensor
    """(F, T) int64: place of each row in the new sequence."""
    rows: int
    """Length of the new sequence."""


def even_schedule(patches: int, keep: int, blocks: int) -> list[int]:
    """Return how many rows each block merges so that `keep` are left, spread evenly."""
    drop = max(0, patches - keep)
    return [(block + 1) * drop // blocks - block * drop // blocks for block in range(blocks)]


def schedule(r: int | Sequence[float], blocks: int) -> list[int]:
    """Return rows merged per block from r, a list (padded with 0) or a pair (r, inflection)."""
    if isinstance(r, int):
        r = (r, 0.0)
    if isinstance(r, list):
        return [int(one) for one in r[:blocks]] + [0] * (blocks - len(r))
    low = int(r[0] * (1 - r[1]))
    high = 2 * r[0] - low
    return [int(low + block * (high - low) / max(1, blocks - 1)) for block in range(blocks)]


def match(metric_FTd: Tensor, r: int, *, class_token: bool) -> Match:
    """Choose the r best pairs of an even and an odd row.

    Args:
        metric_FTd: what rows are compared by; keys of the block, averaged over heads.
        r: how many even rows merge, at most half of those there are.
        class_token: row 0 never merges.

    Returns:
        The new place of each row: unmerged even rows first, ascending (without a class token by falling likeness), then all odd
        rows.

    Source: Bolya et al., Token Merging, ICLR 2023; docs/methods/frames.md section 5.8.
    """
    frames, rows, _ = metric_FTd.shape
    r = max(0, min(r, (rows - class_token) // 2))
    place_T = torch.arange(rows, device=metric_FTd.device)
    if r == 0:
        return Match(slot=place_T.expand(frames, -1), rows=rows)
    unit = normalised(metric_FTd)
    likeness_FAB = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)
    if class_token:
        likeness_FAB[:, 0] = -torch.inf
    best_FA, partner_FA = likeness_FAB.max(dim=-1)
    rank_FA = rank_of(ranked(best_FA))
    merged_FA = rank_FA < r
    left = best_FA.shape[1] - r
    own_FA = (~merged_FA).cumsum(1) - 1 if class_token else rank_FA - r
    slot = torch.empty(frames, rows, dtype=torch.int64, device=metric_FTd.device)
    slot[:, ::2] = torch.where(merged_FA, left + partner_FA, own_FA)
    slot[:, 1::2] = left + torch.arange(likeness_FAB.shape[2], device=slot.device)
    return Match(slot=slot, rows=rows - r)


def merge(x_FTD: Tensor, size_FT: Tensor, found: Match) -> tuple[Tensor, Tensor]:
    """Return rows (F, rows, D) as size-weighted means in float32, cast back, and their sizes (F, rows)."""
    size = torch.zeros(len(x_FTD), found.rows, device=x_FTD.device).scatter_add_(1, found.slot, size_FT)
    index = found.slot[..., None].expand(-1, -1, x_FTD.shape[-1])
    total = torch.zeros(len(x_FTD), found.rows, x_FTD.shape[-1], device=x_FTD.device)
    total.scatter_add_(1, index, x_FTD.float() * size_FT[..., None])
    return (total / size[..., None]).to(x_FTD.dtype), size


@dataclass(frozen=True)
class ToMe(Fingerprinted):
    """Merges similar patches between attention and MLP of every block, until `keep` are left of each frame.

    Source: Bolya et al., Token Merging, ICLR 2023; docs/methods/frames.md section 5.8.
    Departs: the last block is not run, so the schedule spreads over the blocks before it; CLS is dropped at the end.
    """

    config: ToMeConfig
    name: ClassVar[str] = "tome"
    version: ClassVar[int] = 1
    modifies_tower: ClassVar[bool] = True
    needs: ClassVar[frozenset[Capture]] = frozenset()

    def reduce(self, tokens: VisualTokens, text: TextQuery | None = None) -> ReducedTokens:
        """Refuse: the tower merges, with `schedule` and `reduced` of this class."""
        raise ReducerError("tome works inside the tower: run it with pipeline.models.tower, not on finished tokens")

    @property
    def prop_attn(self) -> bool:
        """Whether a merged row counts in attention as often as it stands for a patch."""
        return self.config.prop_attn

    def schedule(self, patches: int, blocks: int) -> list[int]:
        """Return how many rows each block merges."""
        if self.config.r is not None:
            return schedule((self.config.r, self.config.inflection), blocks)
        return even_schedule(patches, self.config.keep or patches, blocks)

    def reduced(self, tokens: VisualTokens, x_FKD: Tensor, size_FK: Tensor, slot_FN: Tensor) -> ReducedTokens:
        """Return the merged rows of all clips.

        Args:
            tokens: grid and bounds of the clips, features of the unmerged shape (F, N, D).
            x_FKD: rows left of each frame, CLS dropped.
            size_FK: patches behind each.
            slot_FN: row that holds each patch.
        """
        frames, kept, _ = x_FKD.shape
        patches = slot_FN.shape[1]
        index_N = torch.arange(patches, device=x_FKD.device).expand(frames, -1)
        first_FK = torch.full((frames, kept), patches, device=x_FKD.device).scatter_reduce_(1, slot_FN, index_N, "amin")
        if self.config.order == "spatial":
            order_FK = first_FK.argsort(dim=1)
            first_FK, size_FK = first_FK.gather(1, order_FK), size_FK.gather(1, order_FK)
            x_FKD, slot_FN = taken(x_FKD, order_FK), rank_of(order_FK).gather(1, slot_FN)
        valid = torch.ones(frames, kept, dtype=torch.bool, device=x_FKD.device)
        position = self._positions(tokens, slot_FN, size_FK)
        slots = Slots(features=x_FKD, valid=valid, anchor=first_FK, kind=MERGED, size=size_FK, position=position)
        return assemble(tokens, [slots], slot_FN)

    def _positions(self, tokens: VisualTokens, slot_FN: Tensor, size_FK: Tensor) -> Tensor:
        """Return mean frame, row and column (F, K, 3) of the patches behind each row."""
        index_N = torch.arange(slot_FN.shape[1], device=slot_FN.device)
        row, column = torch.div(index_N, tokens.grid[1], rounding_mode="floor"), index_N % tokens.grid[1]
        number_F = frames_in_clip(tokens.clip_ptr)[1][:, None].expand_as(size_FK)
        axes = [axis.float().expand_as(slot_FN) for axis in (row, column)]
        means = [torch.zeros_like(size_FK).scatter_add_(1, slot_FN, axis) / size_FK for axis in axes]
        return torch.stack([number_F.float(), *means], dim=-1)
