"""HiRED and its budgets against slow loops: frames of a clip, and sub-images of one picture."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reducers.base import BudgetError, ReducerError
from reducers.methods.hired import HiRed, HiRedConfig, best_attended, frame_scores, region_sums, sheet_layout
from reducers.ops.budgets import allocate
from reducers.registry import parse
from tests.reducers.hired_image import EARLY, HiRedImageConfig, partition_masks, reduce_image, stitched, sub_budgets
from tests.reducers.test_invariants import LENGTHS, tokens


def allocate_loop(total: int, weights: list[float], cap: int) -> list[int]:
    """Largest remainder, one token at a time."""
    weights = weights if sum(weights) > 0 else [1.0] * len(weights)
    exact = [total * weight / sum(weights) for weight in weights]
    budgets = [min(cap, math.floor(share)) for share in exact]
    order = sorted(range(len(exact)), key=lambda at: (-(exact[at] - math.floor(exact[at])), at))
    while sum(budgets) < min(total, cap * len(weights)):
        for at in order:
            if budgets[at] < cap and sum(budgets) < min(total, cap * len(weights)):
                budgets[at] += 1
    return budgets


@given(
    total=st.integers(0, 200),
    weights=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    cap=st.integers(1, 40),
)
def test_allocate_equals_handing_out_one_by_one(total: int, weights: list[int], cap: int) -> None:
    """Exact sums, no part above its cap, ties to the lower part."""
    got = allocate(total, torch.tensor(weights, dtype=torch.float32), cap).tolist()
    assert got == allocate_loop(total, [float(weight) for weight in weights], cap)
    assert sum(got) == min(total, cap * len(weights))


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1.0])
def test_allocate_refuses_weights_that_mean_nothing(wrong: float) -> None:
    """An error at once, not a loop without end."""
    with pytest.raises(BudgetError, match="finite weights"):
        allocate(10, torch.tensor([1.0, wrong]), 8)


@given(seed=st.integers(0, 1000), lengths=LENGTHS, rate=st.floats(0.01, 1.0))
def test_even_budgets_differ_by_one_token_and_spend_the_rate(seed: int, lengths: tuple[int, ...], rate: float) -> None:
    """Each frame keeps its best attended, ascending; the first frames take what does not divide."""
    batch = tokens(seed, lengths)
    reduced = HiRed(HiRedConfig(rate=rate)).reduce(batch)
    scores, first = batch.capture(HiRed.late), 0
    for clip, frames in enumerate(lengths):
        total = max(1, int(frames * 16 * rate))
        expected = []
        for frame in range(frames):
            budget = total // frames + (frame < total % frames)
            row = scores[first + frame].tolist()
            best = sorted(range(16), key=lambda at: (-row[at], at))[:budget]
            expected += [frame * 16 + at for at in sorted(best)]
        assert reduced.anchor[reduced.clip(clip)].tolist() == expected
        first += frames


@given(seed=st.integers(0, 1000), lengths=LENGTHS)
def test_a_score_per_frame_shares_the_budget_of_each_clip_alone(seed: int, lengths: tuple[int, ...]) -> None:
    """More tokens for a frame with more score, and no clip pays for another."""
    batch = tokens(seed, lengths)
    weight_F = torch.rand(sum(lengths), generator=torch.Generator().manual_seed(seed))
    reduced = parse("hired(rate=0.4, frame_score=mosaic)").reduce_by_score(batch, weight_F)
    for clip, weights in enumerate(weight_F.split(lengths)):
        frames = reduced.frame[reduced.clip(clip)].long().bincount(minlength=len(weights)).tolist()
        assert frames == allocate_loop(max(1, int(len(weights) * 16 * 0.4)), weights.double().tolist(), 16)


@given(seed=st.integers(0, 1000), lengths=LENGTHS)
def test_the_mosaic_form_shares_by_what_the_tower_saw_on_the_contact_sheet(seed: int, lengths: tuple[int, ...]) -> None:
    """It asks the tower for that, and only then."""
    batch, reducer = tokens(seed, lengths), parse("hired(rate=0.4, frame_score=mosaic)")
    assert reducer.needs == {HiRed.late, HiRed.sheet}
    assert parse("hired(rate=0.4)").needs == {HiRed.late}
    expected = HiRed(HiRedConfig(rate=0.4)).reduce_by_score(batch, batch.captures[HiRed.sheet][:, 0])
    assert torch.equal(reducer.reduce(batch).anchor, expected.anchor)


def test_the_mosaic_form_is_not_run_without_its_scores() -> None:
    """Nor for more frames than a contact sheet has patches for, nor with a score too many."""
    reducer = parse("hired(frame_score=mosaic)")
    batch = tokens(0, (2,))
    with pytest.raises(ReducerError, match="expected capture"):
        reducer.reduce(replace(batch, captures={HiRed.late: batch.captures[HiRed.late]}))
    with pytest.raises(BudgetError, match="17 frames on a contact sheet of 4 x 4"):
        reducer.reduce(tokens(0, (2, 17)))
    with pytest.raises(ReducerError, match="2 scores, one per frame"):
        reducer.reduce_by_score(tokens(0, (2,)), torch.ones(3))


@given(frames=st.integers(1, 20), rows=st.integers(5, 9), columns=st.integers(5, 9), seed=st.integers(0, 99))
def test_frame_scores_sum_the_attention_of_each_tile(frames: int, rows: int, columns: int, seed: int) -> None:
    """Tiles in raster order, those after the last frame left out."""
    early = torch.rand(rows * columns, generator=torch.Generator().manual_seed(seed))
    high, wide = sheet_layout(frames)
    assert high * wide >= frames > (high - 1) * wide
    assert 0 <= wide - high <= 1
    expected = [0.0] * (high * wide)
    for at in range(rows * columns):
        expected[at // columns * high // rows * wide + at % columns * wide // columns] += float(early[at])
    torch.testing.assert_close(frame_scores(early, frames, (rows, columns)).tolist(), expected[:frames])


@given(
    seed=st.integers(0, 999),
    layout=st.sampled_from([(1, 1), (1, 2), (2, 2), (3, 1)]),
    rate=st.floats(0.05, 1.0),
    alpha=st.floats(0, 1),
)
def test_sub_images_spend_what_the_full_image_leaves(seed: int, layout: tuple[int, int], rate: float, alpha: float) -> None:
    """The budgets of the masks add up; in each partition the best attended are kept."""
    draw, parts = torch.Generator().manual_seed(seed), layout[0] * layout[1] + 1
    early, late = torch.rand(36, generator=draw), torch.rand(parts, 36, generator=draw)
    mask, budgets = partition_masks(early, late, layout, (6, 6), HiRedImageConfig(rate=rate, alpha=alpha))
    total = int(parts * 36 * rate)
    full = min(int(total * alpha), 36)
    assert mask.sum(1).tolist() == [full, *budgets.tolist()]
    left = min(total - full, (parts - 1) * 36)
    assert budgets.tolist() == allocate_loop(left, region_sums(early, layout, (6, 6)).tolist(), 36)
    for row, kept in zip(late, mask, strict=True):
        assert kept.all() or not kept.any() or row[kept].min() >= row[~kept].max()


PICTURES = [((2, 2), None), ((1, 2), (32, 64)), ((2, 2), (48, 64)), ((2, 1), (64, 24)), ((2, 1), (64, 16))]


@pytest.mark.parametrize(("layout", "image"), PICTURES)
def test_stitching_reads_kept_patches_row_by_row_and_drops_padding(
    layout: tuple[int, int], image: tuple[int, int] | None
) -> None:
    """The full image first; then the picture as one grid, cropped to what it shows."""
    mask = torch.rand(layout[0] * layout[1] + 1, 16, generator=torch.Generator().manual_seed(5)) < 0.6
    high, wide = layout[0] * 4, layout[1] * 4
    top = left = 0
    if image is not None and image[1] / image[0] > wide / high:
        top = (high - int(image[0] * (wide / image[1]))) // 2
    elif image is not None:
        left = (wide - int(image[1] * (high / image[0]))) // 2
    expected = [(0, at) for at in range(16) if mask[0, at]]
    for row in range(top, high - top):
        for column in range(left, wide - left):
            part, at = row // 4 * layout[1] + column // 4 + 1, row % 4 * 4 + column % 4
            expected += [(part, at)] if mask[part, at] else []
    part, patch = stitched(mask, layout, (4, 4), image, HiRedImageConfig())
    assert list(zip(part.tolist(), patch.tolist(), strict=True)) == expected


def test_a_sparse_grid_is_kept_besides_the_best() -> None:
    """Every g-th patch below the last one."""
    mask = best_attended(torch.arange(16.0)[None], torch.tensor([1]), spatial_tokens=4)
    assert mask[0].nonzero()[:, 0].tolist() == [0, 4, 8, 12, 15]


def test_the_exchanged_grid_is_an_accident_to_be_asked_for() -> None:
    """Budgets by bands are an option, a wrong layout is not."""
    assert HiRedImageConfig(budget_mode="official").budget_mode == "official"
    with pytest.raises(ReducerError, match="compat"):
        HiRedImageConfig(swapped_grid=True)


def test_an_exchanged_grid_reads_as_the_other_layout_would() -> None:
    """Three sub-images side by side as if they lay one below the other."""
    mask = torch.rand(4, 16, generator=torch.Generator().manual_seed(2)) < 0.6
    swapped = HiRedImageConfig(swapped_grid=True, compat=True)
    for one, other in (((1, 3), (3, 1)), ((3, 1), (1, 3))):
        found, expected = stitched(mask, one, (4, 4), None, swapped), stitched(mask, other, (4, 4), None, HiRedImageConfig())
        assert [part.tolist() for part in found] == [part.tolist() for part in expected]
        assert [part.tolist() for part in found] != [
            part.tolist() for part in stitched(mask, one, (4, 4), None, HiRedImageConfig())
        ]


def test_bands_share_by_how_many_of_the_best_lie_in_them() -> None:
    """Rounded down and at most a whole sub-image; bands must divide the patches."""
    early, config = torch.arange(16.0).flip(0), HiRedImageConfig(budget_mode="official", alpha=0.625)
    assert sub_budgets(early, (2, 2), (4, 4), 10, config).tolist() == [6, 3, 0, 0]
    assert sub_budgets(early, (2, 2), (4, 4), 40, config).tolist() == [16, 13, 0, 0]
    assert sub_budgets(early, (2, 2), (4, 4), 10, replace(config, alpha=1.0)).tolist() == [0, 0, 0, 0]
    with pytest.raises(BudgetError, match="3 sub-images must divide"):
        sub_budgets(early, (1, 3), (4, 4), 10, config)


@pytest.mark.parametrize("wrong", [{"rate": 0.0}, {"rate": 1.1}, {"alpha": -0.1}, {"alpha": 1.1}])
def test_shares_of_a_picture_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    """All of it and nothing for the full image are shares."""
    with pytest.raises(BudgetError, match="rate in"):
        HiRedImageConfig(**wrong)
    assert HiRedImageConfig(rate=1.0, alpha=0.0).alpha == 0


def test_a_picture_with_a_value_that_is_not_finite_is_refused() -> None:
    """Never a silent choice by NaN."""
    seen = tokens(3, (5,))
    seen.features[2, 3, 1] = math.nan
    with pytest.raises(ReducerError, match="frame 2"):
        reduce_image(seen, (2, 2), HiRedImageConfig())


@pytest.mark.parametrize("layout", [(2, 2), (1, 3)])
def test_a_picture_keeps_the_patches_of_its_masks(layout: tuple[int, int]) -> None:
    """Partition by partition, or stitched; every token says which patch of which partition it is."""
    config, parts = HiRedImageConfig(rate=0.6), layout[0] * layout[1] + 1
    seen = tokens(3, (parts,))
    mask, _ = partition_masks(seen.captures[EARLY][0], seen.captures[HiRed.late], layout, (4, 4), config)
    plain = reduce_image(seen, layout, config)
    assert plain.anchor.tolist() == mask.flatten().nonzero()[:, 0].tolist()
    assert len(plain.features) == int(parts * 16 * 0.6)
    raster = reduce_image(seen, layout, config, order="stitched")
    part, patch = stitched(mask, layout, (4, 4), None, config)
    assert raster.anchor.tolist() == (part * 16 + patch).tolist()
    for reduced in (plain, raster):
        assert torch.equal(reduced.features, seen.features.flatten(0, 1)[reduced.anchor.long()])
        assert reduced.owner is not None
        assert reduced.owner[reduced.anchor.long()].tolist() == list(range(len(reduced.features)))
        assert int((reduced.owner >= 0).sum()) == len(reduced.features)


def test_a_picture_alone_keeps_its_best_attended() -> None:
    """And a layout that is not what was encoded is refused."""
    seen, config = tokens(3, (1,)), HiRedImageConfig(rate=0.3)
    for order in ("partition", "stitched"):
        assert torch.equal(reduce_image(seen, (0, 0), config, order=order).anchor, parse("hired(rate=0.3)").reduce(seen).anchor)
    with pytest.raises(ReducerError, match="expected 5 partitions"):
        reduce_image(seen, (2, 2), config)
