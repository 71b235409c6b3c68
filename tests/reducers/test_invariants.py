"""What holds for every reducer, on random clips of random sizes."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reducers.base import CLS, BudgetError, Capture, ReducedTokens, Reducer, ReducerError, TextQuery, VisualTokens
from reducers.compose.selectors import FIRST
from reducers.compose.spenders import SECOND
from reducers.registry import METHODS, names, parse

SPECS = (
    "none",
    "none(keep_cls=false)",
    "sequential(k=3)",
    "sequential(k=3, scope=clip)",
    "spatial(k=4)",
    "spatial(rows=2, cols=3)",
    "prumerge",
    "prumerge(ratio=0.25)",
    "prumerge(ratio=0.25, scope=clip)",
    "prumerge(merge=mean, order=spatial)",
    "prumerge(residual=false)",
    "prumerge+",
    "prumerge+(ratio=0.25)",
    "prumerge+(ratio=0.125, knn=3, residual=false)",
    "visionzip(dominant=5, contextual=3)",
    "visionzip(dominant=1, contextual=1)",
    "hired(rate=0.3)",
    "hired(rate=0.2, spatial_tokens=2)",
    "hired(rate=0.3, frame_score=mosaic)",
    "trim",
    "trim(ratio=0.25, score=cosine)",
    "trim(ratio=0.25, scope=clip)",
    "trim(ratio=0.1, aggregate=false)",
    "evs",
    "dycoke_ttm",
    "fastvid",
    "holitom",
    "flashvid",
    "unicomp",
    "vcast",
    "nest",
    "nest(keep=20)",
    *(f"{first}|{second}" for first in FIRST for second in SECOND),
    "alloc(vcast, keep=9)+prumerge",
    "alloc(unicomp, keep=20)+visionzip",
    "alloc(novelty, keep=20)+prumerge+",
    "evs(keep=20)|visionzip(dominant=3, contextual=2, merge=mean)",
    "evs(keep=20, absorb=false)|prumerge+",
    "static(keep=20, tau=0.3, block=visionzip)|prumerge",
    "tree(keep=20, tau=0.3)+visionzip",
)


def tokens(seed: int, lengths: tuple[int, ...], grid: tuple[int, int] = (4, 4), constant: bool = False) -> VisualTokens:
    """Clips of some lengths with every capture that a reducer may ask for."""
    draw = torch.Generator().manual_seed(seed)
    frames, patches, width = sum(lengths), grid[0] * grid[1], 8

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    captures: dict[Capture, torch.Tensor] = {}
    for block in ("selected", "next", "first"):
        for heads in ("concat", "sum", "mean"):
            scores = torch.zeros(frames, patches) if constant else random(frames, patches) * 2
            captures[Capture(kind="cls_attn", block=block, heads=heads)] = scores.softmax(-1)
            captures[Capture(kind="received", block=block, heads=heads)] = scores.softmax(-1)
            captures[Capture(kind="keys", block=block, heads=heads)] = random(frames, patches, width)
    sheet = torch.ones(frames, 1) if constant else random(frames, 1).exp()
    captures[Capture(kind="sheet", block="first", heads="sum")] = sheet
    return VisualTokens(
        features=random(frames, patches, width),
        cls=random(frames, width),
        grid=grid,
        clip_ptr=torch.tensor([0, *lengths]).cumsum(0),
        captures=captures,
        clip_space=random(frames, patches, 6),
    )


def reduce(reducer: Reducer, given: VisualTokens) -> ReducedTokens:
    """Reduce with a question that depends on the first row of each clip only, so that it is the same alone or in a batch."""
    assert given.clip_space is not None
    return reducer.reduce(given, TextQuery(embedding=given.clip_space[given.clip_ptr[:-1], 0] + 0.5))


def clip(given: VisualTokens, number: int) -> VisualTokens:
    """One clip of a batch by itself."""
    span = slice(int(given.clip_ptr[number]), int(given.clip_ptr[number + 1]))
    return replace(
        given,
        features=given.features[span],
        cls=None if given.cls is None else given.cls[span],
        clip_ptr=torch.tensor([0, span.stop - span.start]),
        captures={need: value[span] for need, value in given.captures.items()},
        clip_space=None if given.clip_space is None else given.clip_space[span],
    )


def fields(reduced: ReducedTokens, number: int = 0) -> dict[str, torch.Tensor]:
    span = reduced.clip(number)
    return {name: getattr(reduced, name)[span] for name in ("features", "frame", "anchor", "kind", "size", "position")}


LENGTHS = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


def test_every_method_is_in_this_suite() -> None:
    """A new reducer cannot stay out of it."""
    alone = {name for name in names() if not parse(name).modifies_tower}
    assert {parse(spec).name for spec in SPECS} == alone | {f"{first}|{second}" for first in FIRST for second in SECOND}


@pytest.mark.parametrize("spec", SPECS)
@given(seed=st.integers(0, 10_000), lengths=LENGTHS)
def test_a_batch_reduces_as_its_clips_do_one_by_one(spec: str, seed: int, lengths: tuple[int, ...]) -> None:
    """Whoever shares the batch, in whatever number."""
    reducer, batch = parse(spec), tokens(seed, lengths)
    together = reduce(reducer, batch)
    assert int(together.ptr[-1]) == len(together.features)
    for number in range(len(lengths)):
        for name, value in fields(reduce(reducer, clip(batch, number))).items():
            expected = fields(together, number)[name]
            torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("spec", SPECS)
@given(seed=st.integers(0, 10_000), lengths=LENGTHS, constant=st.booleans())
def test_what_comes_out_is_well_formed(spec: str, seed: int, lengths: tuple[int, ...], constant: bool) -> None:
    """Anchors are unique places of the clip, positions lie in it, frames rise, sizes count patches, values are finite."""
    batch = tokens(seed, lengths, constant=constant)
    reduced = reduce(parse(spec), batch)
    assert reduced.features.isfinite().all()
    assert reduced.features.dtype == batch.features.dtype
    for number, frames in enumerate(lengths):
        one = fields(reduced, number)
        assert len(one["features"]) >= 1
        anchors = one["anchor"][one["anchor"] >= 0]
        assert anchors.unique().numel() == anchors.numel()
        assert ((anchors >= 0) & (anchors < frames * 16)).all()
        assert ((one["frame"] >= -1) & (one["frame"] < frames)).all()
        assert (one["frame"][one["frame"] >= 0].diff() >= 0).all() or "clip" in spec
        assert (one["size"] >= 0).all()
        assert float(one["size"].sum()) <= frames * 16 + 1e-3
        placed = one["position"][one["kind"] != CLS]
        assert (placed[:, 1:] <= 3).all()
        assert (one["position"][one["kind"] == CLS] == -1).all()


@pytest.mark.parametrize("spec", SPECS)
def test_half_precision_keeps_the_same_patches(spec: str) -> None:
    """Scores are float32 whatever the features are; only values are rounded."""
    batch = tokens(3, (4, 2))
    half = replace(batch, features=batch.features.half(), cls=None if batch.cls is None else batch.cls.half())
    full, low = reduce(parse(spec), batch), reduce(parse(spec), half)
    assert low.features.dtype == torch.float16
    assert torch.equal(full.anchor, low.anchor)
    torch.testing.assert_close(low.features.float(), full.features, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("where", ["features", "captures"])
def test_a_value_that_is_not_finite_is_an_error_that_names_the_frame(spec: str, where: str) -> None:
    """Never a silent choice by NaN."""
    batch = tokens(3, (4, 2))
    spoilt = batch.features.clone()
    spoilt[5, 3, 1] = math.nan
    reducer = parse(spec)
    if where == "features":
        batch = replace(batch, features=spoilt)
    else:
        if not reducer.needs:
            return
        captures = dict(batch.captures)
        for need in reducer.needs:
            captures[need] = captures[need].clone()
            captures[need][5].view(-1)[0] = math.inf
        batch = replace(batch, captures=captures)
    with pytest.raises(ReducerError, match="frame 5"):
        reduce(reducer, batch)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (16, 16), (3, 5)])
def test_grids_of_any_shape_are_reduced(spec: str, grid: tuple[int, int]) -> None:
    """One patch, one row, the real model's, one that is not square; a budget above the input keeps the input."""
    if "rows=2" in spec and (grid[0] < 2 or grid[1] < 3):
        with pytest.raises(BudgetError, match="crossings"):
            reduce(parse(spec), tokens(1, (3,), grid))
        return
    if "mosaic" in spec and min(grid) < 2:
        with pytest.raises(BudgetError, match="contact sheet"):
            reduce(parse(spec), tokens(1, (3,), grid))
        return
    reduced = reduce(parse(spec), tokens(1, (3,), grid))
    assert 1 <= len(reduced.features) <= 3 * (grid[0] * grid[1] + 1)


EXACT = {
    "none": lambda frames, patches: frames * (patches + 1),
    "none(keep_cls=false)": lambda frames, patches: frames * patches,
    "sequential(k=3)": lambda frames, patches: frames * 3,
    "spatial(k=4)": lambda frames, patches: frames * 4,
    "spatial(rows=2, cols=3)": lambda frames, patches: frames * 6,
    "prumerge(ratio=0.25)": lambda frames, patches: frames * (patches // 4 + 1),
    "prumerge+(ratio=0.25)": lambda frames, patches: frames * (patches // 4 * 2 + 1),
    "visionzip(dominant=5, contextual=3)": lambda frames, patches: frames * 8,
    "hired(rate=0.3, frame_score=mosaic)": lambda frames, patches: int(frames * patches * 0.3),
    "hired(rate=0.3)": lambda frames, patches: int(frames * patches * 0.3),
    "trim(ratio=0.25, score=cosine)": lambda frames, patches: frames * (patches // 4 + 1),
    "trim(ratio=0.25, scope=clip)": lambda frames, patches: frames * patches // 4 + 1,
    **{
        f"{first}(keep=20)|{second}": lambda frames, patches: min(20, frames * (patches + 1))
        for first in FIRST
        for second in SECOND
    },
}


@pytest.mark.parametrize("spec", EXACT)
@given(seed=st.integers(0, 10_000), lengths=LENGTHS)
def test_a_promised_budget_is_met_exactly(spec: str, seed: int, lengths: tuple[int, ...]) -> None:
    """Per clip, whatever the data."""
    reduced = reduce(parse(spec), tokens(seed, lengths))
    counts = (reduced.ptr[1:] - reduced.ptr[:-1]).tolist()
    assert counts == [EXACT[spec](frames, 16) for frames in lengths]


@pytest.mark.parametrize("spec", SPECS)
def test_the_same_input_gives_the_same_bytes(spec: str) -> None:
    """Twice in a row, and by a reducer parsed anew."""
    batch = tokens(9, (3, 1))
    one, other = reduce(parse(spec), batch), reduce(parse(spec), batch)
    assert all(torch.equal(fields(one)[name], fields(other)[name]) for name in fields(one))


def test_every_parameter_is_in_the_fingerprint() -> None:
    """Defaults too: a default that changes later must miss."""
    for name, (config, build) in METHODS.items():
        described = build(config()).fingerprint()
        assert f'"name":"{name}"' in described
        assert all(f'"{field}"' in described for field in vars(config()))
