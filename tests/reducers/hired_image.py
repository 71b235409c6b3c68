"""HiRED for one picture seen as a whole and in sub-images: budgets by region, kept patches stitched back together.

Shapes: P partitions (0 the full image, then rows x cols sub-images in raster order), N = gh * gw patches of each.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from reducers.base import KEPT, BudgetError, Capture, ReducedTokens, ReducerError, VisualTokens, check_finite
from reducers.methods.hired import HiRed, best_attended, region_sums
from reducers.ops.budgets import allocate, share_to_count
from reducers.ops.ranking import ranked

EARLY = Capture(kind="cls_attn", block="first", heads="sum")
"""What budgets are shared by, besides `HiRed.late`."""


@dataclass(frozen=True, kw_only=True)
class HiRedImageConfig:
    """Parameters of HiRED over partitions."""

    rate: float = 0.2
    """Share of all patches of all partitions that is kept."""
    alpha: float = 0.5
    """Share of the budget that goes to the full image."""
    budget_mode: Literal["region", "official"] = "region"
    """region: by early attention summed over each region. official: by a count of marks in bands of rows."""
    swapped_grid: bool = False
    """Published accident: rows and columns of the layout are exchanged when stitching. Needs compat."""
    compat: bool = False
    """Allow published accidents."""

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1 or not 0 <= self.alpha <= 1:
            raise BudgetError(f"expected rate in (0, 1] and alpha in [0, 1], got {self.rate} and {self.alpha}")
        if self.swapped_grid and not self.compat:
            raise ReducerError("swapped_grid is a published accident: add compat=true")


def reduce_image(
    tokens: VisualTokens,
    layout: tuple[int, int],
    config: HiRedImageConfig,
    *,
    order: Literal["partition", "stitched"] = "partition",
    image: tuple[int, int] | None = None,
) -> ReducedTokens:
    """Return what HiRED keeps of one picture, unchanged.

    Args:
        tokens: the partitions as frames of one clip, the full image first, then rows x columns sub-images in raster order;
            with the captures `EARLY` and `HiRed.late`.
        layout: rows and columns of sub-images; (0, 0) for the full image alone.
        order: partition by partition, or the full image and then one raster over all sub-images.
        image: height and width of the picture, px; what shows only padding is dropped where the order is stitched.

    Raises:
        ReducerError: the partitions are not as many as the layout says, or a value is not finite.

    Source: hasanar1f/HiRED, AAAI 2025, at 502d6dd; docs/methods/frames.md section 5.7.
    """
    check_finite(tokens)
    partitions, patches, _ = tokens.features.shape
    if partitions != layout[0] * layout[1] + 1:
        raise ReducerError(f"expected {layout[0] * layout[1] + 1} partitions for a layout of {layout}, got {partitions}")
    late_PN = tokens.capture(HiRed.late)
    if partitions == 1:
        mask_PN = best_attended(late_PN, torch.tensor([share_to_count(patches, config.rate)], device=late_PN.device))
    else:
        mask_PN, _ = partition_masks(tokens.capture(EARLY)[0], late_PN, layout, tokens.grid, config)
    part_S, patch_S = mask_PN.nonzero(as_tuple=True)
    if order == "stitched" and partitions > 1:
        part_S, patch_S = stitched(mask_PN, layout, tokens.grid, image, config)
    return _laid_out(tokens, part_S, patch_S)


def _laid_out(tokens: VisualTokens, part_S: Tensor, patch_S: Tensor) -> ReducedTokens:
    """Return patches of partitions unchanged, in the order in which they are named."""
    partitions, patches, _ = tokens.features.shape
    owner = torch.full((partitions * patches,), -1, dtype=torch.int32, device=part_S.device)
    owner[part_S * patches + patch_S] = torch.arange(len(part_S), dtype=torch.int32, device=part_S.device)
    place_S3 = [part_S, torch.div(patch_S, tokens.grid[1], rounding_mode="floor"), patch_S % tokens.grid[1]]
    return ReducedTokens(
        features=tokens.features[part_S, patch_S],
        ptr=torch.tensor([0, len(part_S)], device=part_S.device),
        frame=part_S.to(torch.int16),
        anchor=(part_S * patches + patch_S).to(torch.int32),
        kind=torch.full_like(part_S, KEPT, dtype=torch.uint8),
        size=torch.ones(len(part_S), device=part_S.device),
        position=torch.stack(place_S3, dim=1).float(),
        owner=owner,
    )


def sub_budgets(
    early_N: Tensor, layout: tuple[int, int], grid: tuple[int, int], total: int, config: HiRedImageConfig
) -> Tensor:
    """Return the budget of each sub-image (P - 1,), int64, from the full image's early attention.

    Raises BudgetError if published bands of rows cannot be cut.

    Source: hasanar1f/HiRED, AAAI 2025, at 502d6dd; docs/methods/frames.md section 5.7.
    Departs: shares come from attention summed over 2-D regions, by largest remainder (H1, H2, H3).
    """
    parts, patches = layout[0] * layout[1], len(early_N)
    if config.budget_mode == "official":
        if patches % parts:
            raise BudgetError(f"budget_mode=official cuts {patches} patches in bands: {parts} sub-images must divide them")
        marks = torch.zeros(patches, dtype=torch.float32, device=early_N.device)
        marks[ranked(early_N)[: share_to_count(patches, 1 - config.alpha)]] = 1
        count = marks.view(parts, -1).sum(1)
        return (count / count.sum().clamp(min=1) * total).long().clamp(max=patches)
    return allocate(total, region_sums(early_N, layout, grid), patches)


def partition_masks(
    early_N: Tensor, late_PN: Tensor, layout: tuple[int, int], grid: tuple[int, int], config: HiRedImageConfig
) -> tuple[Tensor, Tensor]:
    """Return what each partition keeps (P, N) bool, and the budgets of the sub-images (P - 1,)."""
    partitions, patches = late_PN.shape
    total = share_to_count(partitions * patches, config.rate)
    full = min(share_to_count(total, config.alpha), patches)
    left = min(total - full, (partitions - 1) * patches)
    budgets = sub_budgets(early_N, layout, grid, left, config)
    every = torch.cat([budgets.new_tensor([full]), budgets])
    return best_attended(late_PN, every), budgets


def stitched(
    mask_PN: Tensor, layout: tuple[int, int], grid: tuple[int, int], image: tuple[int, int] | None, config: HiRedImageConfig
) -> tuple[Tensor, Tensor]:
    """Return partition and patch of each kept token (S,), full image first, then one raster over all sub-images.

    `image` is the picture's height and width, px: sub-image patches that show only padding are dropped.
    """
    rows, columns = (layout[1], layout[0]) if config.swapped_grid else layout
    high, wide = rows * grid[0], columns * grid[1]
    place = torch.arange(1, len(mask_PN), device=mask_PN.device)[:, None] * mask_PN.shape[1]
    number = (place + torch.arange(mask_PN.shape[1], device=mask_PN.device)).view(rows, columns, *grid)
    raster = number.permute(0, 2, 1, 3).reshape(high, wide)
    top, left = (0, 0) if image is None else padding(image, (high, wide))
    shown = raster[top : high - top, left : wide - left].flatten()
    first = mask_PN[0].nonzero()[:, 0]
    chosen = torch.cat([first, shown[mask_PN.flatten()[shown]]])
    return torch.div(chosen, mask_PN.shape[1], rounding_mode="floor"), chosen % mask_PN.shape[1]


def padding(image: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
    """Return how many rows and columns at either side of a stitched grid show only padding."""
    (height, width), (high, wide) = image, grid
    if width / height > wide / high:
        return (high - int(height * (wide / width))) // 2, 0
    return 0, (wide - int(width * (high / height))) // 2
