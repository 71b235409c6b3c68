"""Each reducer against a loop over tokens written from the paper: the same tokens in the same order, the same values."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from reducers.base import BudgetError, ReducedTokens, TextQuery, VisualTokens
from reducers.methods.tome import match, merge
from reducers.nest.order import BLOCK
from reducers.registry import names, parse
from tests.naive import NAIVE, merge_step, nest, video_of
from tests.reducers.test_fit import related
from tests.reducers.test_invariants import tokens

FRAME_SPECS = (
    "none",
    "none(keep_cls=false)",
    "sequential(k=3)",
    "spatial(k=4)",
    "spatial(k=6)",
    "spatial(k=5)",
    "prumerge",
    "prumerge(ratio=0.25, knn=3)",
    "prumerge(merge=mean, knn=4, order=spatial)",
    "prumerge(ratio=0.2, scope=clip)",
    "prumerge(residual=false, knn=2)",
    "prumerge+",
    "prumerge+(ratio=0.25)",
    "prumerge+(ratio=0.125, knn=3, residual=false)",
    "visionzip(dominant=5, contextual=3)",
    "visionzip(dominant=4, contextual=2, merge=mean, keep_cls=false)",
    "visionzip(dominant=1, contextual=40)",
    "visionzip(dominant=3, contextual=0, score=received)",
    "hired(rate=0.3)",
    "hired(rate=0.2, spatial_tokens=2)",
    "trim",
    "trim(ratio=0.25, score=cosine)",
    "trim(ratio=0.25, scope=clip)",
    "trim(ratio=0.1, aggregate=false)",
)
CLIP_SPECS = (
    "evs",
    "evs(keep=3)",
    "evs(ratio=0.4, keep_cls=false)",
    "dycoke_ttm",
    "dycoke_ttm(ratio=0.5, keep_cls=false)",
    "dycoke_ttm(ratio=0.1)",
    "dycoke_ttm(prune=0.5, exact=false)",
    "fastvid",
    "fastvid(context_share=1.0, stride=2, tau=-1.0, segments=1)",
    "fastvid(beta=0.05, tau=-1.0, keep_cls=false)",
    "fastvid(ratio=0.6, keep_cls=false, stride=1, tau=0.2, exact=false)",
    "holitom",
    "holitom(tau=0.3)",
    "holitom(tau=0.3, context_share=0.5, ratio=0.5, exact=false)",
    "holitom(tau=0.5, max_window=2, keep=9)",
    "flashvid",
    "flashvid(tau=0.3, keep_cls=false)",
    "flashvid(tau=0.1, selection=v2, segments=1, segment_tau=-1.0, ratio=0.5, exact=false)",
    "unicomp",
    "unicomp(metric=keys, spatial_uniqueness=0.8, frame_uniqueness=0.9, keep=9)",
    "unicomp(spatial_uniqueness=0.6, frame_uniqueness=0.3, ratio=0.3, exact=false)",
    "vcast",
    "vcast(ratio=0.4, least=2)",
    "nest",
    "nest(superset=20, keep=10, gate=0.3, keep_cls=false)",
    "nest(superset=24, keep=12, gate=0.1, spread=1, memory=3.0, gamma=1.5)",
)
LEAST_CLEAR = 5
"""Of six draws."""
GRIDS = st.sampled_from([(4, 4), (1, 1), (1, 7), (2, 1), (3, 5), (5, 2)])


def question(given_: VisualTokens) -> TextQuery:
    assert given_.clip_space is not None
    return TextQuery(embedding=given_.clip_space[:1, 0] + 0.5)


def check(spec: str, batch: VisualTokens) -> ReducedTokens:
    """Compare both; return ours."""
    reducer, text = parse(spec), question(batch)
    ours = reducer.reduce(batch, text)
    expected = NAIVE[reducer.name](video_of(batch, text), reducer.config)
    assert ours.anchor.tolist() == [token.anchor for token in expected]
    torch.testing.assert_close(ours.size.double(), torch.tensor([t.size for t in expected]).double(), atol=1e-4, rtol=1e-4)
    rows = torch.from_numpy(np.stack([token.row for token in expected])).float()
    torch.testing.assert_close(ours.features, rows, atol=2e-5, rtol=1e-4)
    return ours


def certain(spec: str, batch: VisualTokens) -> bool:
    """Whether no choice is too close to call in float32; two patches or frames are equally unique to `unicomp`."""
    if spec.startswith("unicomp"):
        return 2 not in batch.features.shape[:2]
    return not spec.startswith("nest") or nest.certain(video_of(batch), parse(spec).config)


def test_every_method_has_its_loop() -> None:
    """A new reducer cannot stay out."""
    assert set(NAIVE) == {name for name in names() if not parse(name).modifies_tower}
    assert {parse(spec).name for spec in (*FRAME_SPECS, *CLIP_SPECS)} == set(NAIVE)


@pytest.mark.parametrize("spec", [*FRAME_SPECS, *CLIP_SPECS])
def test_eight_frames_are_reduced_as_by_a_loop(spec: str) -> None:
    """Unlike frames, and noisy copies of one. Most of the draws must be clear enough to compare."""
    draws = [related(seed, (8,), copies) for seed in range(3) for copies in ("none", "noisy")]
    clear = [batch for batch in draws if certain(spec, batch)]
    assert len(clear) >= LEAST_CLEAR, f"{spec}: {len(clear)} of {len(draws)} draws have no choice that is too close to call"
    for batch in clear:
        check(spec, batch)


@pytest.mark.parametrize("spec", FRAME_SPECS)
@settings(max_examples=15)
@given(seed=st.integers(0, 9999), frames=st.integers(1, 4), grid=GRIDS)
def test_frames_of_any_shape_are_reduced_as_by_a_loop(spec: str, seed: int, frames: int, grid: tuple[int, int]) -> None:
    """One patch, one row, narrow grids, one frame."""
    check(spec, tokens(seed, (frames,), grid))


@pytest.mark.parametrize("spec", CLIP_SPECS)
@settings(max_examples=15)
@given(seed=st.integers(0, 9999), frames=st.integers(1, 7), grid=GRIDS, alike=st.sampled_from([0.0, 1.0, 3.0]))
def test_clips_of_any_shape_are_reduced_as_by_a_loop(
    spec: str, seed: int, frames: int, grid: tuple[int, int], alike: float
) -> None:
    """One frame, one patch, frames that have much in common or nothing."""
    batch = tokens(seed, (frames,), grid)
    batch.features.add_(alike * batch.features[:1].clone())
    assume(certain(spec, batch))
    check(spec, batch)


@pytest.mark.parametrize("seed", range(2))
def test_nest_orders_more_patches_than_a_block_of_its_kernel_as_a_loop_does(seed: int) -> None:
    """A kernel is made in blocks and their mirror images."""
    batch = tokens(seed, (5,), (8, 11))
    assert len(batch.features) * batch.features.shape[1] > BLOCK
    check("nest(superset=40, keep=20, gate=0.1)", batch)


def test_a_grid_that_does_not_fit_is_refused_by_both() -> None:
    """More rows than patches: no loop would find them."""
    with pytest.raises(BudgetError):
        parse("spatial(rows=9, cols=1)").reduce(tokens(0, (1,)))


@settings(max_examples=40)
@given(rows=st.integers(2, 21), r=st.integers(0, 12), seed=st.integers(0, 9999))
def test_a_merging_step_is_that_of_a_loop(rows: int, r: int, seed: int) -> None:
    """Rows, sizes and where each row went."""
    draw = torch.Generator().manual_seed(seed)
    keys, x = torch.randn(2, 1, rows, 5, generator=draw)
    sizes = torch.randint(1, 5, (1, rows), generator=draw).float()
    found = match(keys, r, class_token=True)
    merged, size = merge(x, sizes, found)
    expected = merge_step(list(keys[0].double().numpy()), list(x[0].double().numpy()), sizes[0].tolist(), r)
    if found.rows < rows:  # a step that merges nothing leaves the order, the loop sorts even rows first
        assert found.slot[0].tolist() == expected[2]
        assert size[0].tolist() == expected[1]
        torch.testing.assert_close(merged[0], torch.from_numpy(np.stack(expected[0])).float(), atol=1e-5, rtol=1e-4)
    else:
        assert found.slot[0].tolist() == list(range(rows))
        torch.testing.assert_close(merged, x)
