"""PruMerge and PruMerge+ with every option against a slow loop over rows and tokens."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reducers.base import AGGREGATE, ENRICHED, BudgetError, ReducerError, VisualTokens
from reducers.methods.prumerge import PruMerge, PruMergeConfig, PruMergePlus
from reducers.registry import parse
from tests.reducers.test_invariants import LENGTHS, tokens
from tests.reducers.test_reference import quantile


def ranking(scores: list[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda at: (-scores[at], at))


def outliers(scores: list[float], factor: float) -> int:
    low, high = quantile(scores, 0.25), quantile(scores, 0.75)
    return sum(score > high + factor * (high - low) for score in scores)


def chosen(scores: list[float], config: PruMergeConfig, plus: bool) -> list[int]:
    """One row: which patches are kept, in order of output."""
    patches, order = len(scores), ranking(scores)
    if config.adaptive:
        count = outliers(scores, config.iqr_factor)
        start, stride = 0, max(1, patches // max(count, 1) // 3)
    else:
        assert config.ratio is not None
        count, stride = int(patches * config.ratio), int(1 / config.ratio)
        start = stride // 2
    kept = order[:count]
    if plus:
        kept += [at for at in range(start, patches - 1, stride) if at not in kept]
    if plus and not config.adaptive:
        kept += [at for at in order if at not in kept]
        kept = kept[: 2 * count]
    if not kept and not config.residual:
        kept = order[:1]
    return sorted(kept) if config.order == "spatial" else kept


def prumerge_loop(
    x: torch.Tensor, keys: torch.Tensor, scores: list[float], config: PruMergeConfig, plus: bool
) -> tuple[list[int], list[torch.Tensor]]:
    """One row: kept patches and the tokens that come out, the residual last."""
    unit = keys / keys.norm(dim=-1, keepdim=True)
    kept, rows = chosen(scores, config, plus), []
    for centre in kept:
        likeness = {at: float(unit[centre] @ unit[at]) for at in range(len(scores)) if at != centre}
        near = sorted(likeness, key=lambda at: (-likeness[at], at))
        if config.merge == "mean":
            group = [centre, *near[: max(0, config.knn - 1)]]
            rows.append(sum(scores[at] * x[at] for at in group) / sum(scores[at] for at in group))
        else:
            rows.append(x[centre] + sum(scores[at] * x[at] for at in near[: config.knn]))
    if config.residual:
        rest = [at for at in range(len(scores)) if at not in kept]
        rows.append(sum((scores[at] * x[at] for at in rest), torch.zeros_like(x[0])))
    return kept, rows


def assert_equals_loop(reducer: PruMerge, batch: VisualTokens, rows: list[list[int]]) -> None:
    """`rows` lists the frames that each row of the loop flattens."""
    anchors, values = [], []
    for frames in rows:
        x, keys = (value[frames].flatten(0, 1) for value in (batch.features, batch.capture(reducer._keys)))
        scores = batch.capture(reducer._attention)[frames].flatten().tolist()
        kept, out = prumerge_loop(x, keys, scores, reducer.config, reducer.plus)
        anchors += kept + [-1] * reducer.config.residual
        values += out
    reduced = reducer.reduce(batch)
    wide = len(rows[0]) * batch.features.shape[1] if reducer.config.scope == "clip" else batch.features.shape[1]
    assert [int(anchor) % wide if anchor >= 0 else -1 for anchor in reduced.anchor] == anchors
    torch.testing.assert_close(reduced.features, torch.stack(values), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("build", [PruMerge, PruMergePlus])
@given(
    seed=st.integers(0, 999),
    ratio=st.sampled_from([None, 0.02, 1 / 8, 0.3, 0.5, 1.0]),
    knn=st.sampled_from([0, 1, 4, 32]),
    merge=st.sampled_from(["add", "mean"]),
    order=st.sampled_from(["attention", "spatial"]),
    residual=st.booleans(),
    factor=st.sampled_from([0.0, 1.5, 100.0]),
)
def test_every_option_equals_a_loop_over_frames_and_tokens(
    build: type[PruMerge], seed: int, ratio: float | None, residual: bool, factor: float, **options: object
) -> None:
    """Adaptive and fixed, nobody kept and everybody kept."""
    config = PruMergeConfig(ratio=ratio, residual=residual, iqr_factor=factor, **options)
    assert_equals_loop(build(config), tokens(seed, (2, 1), grid=(4, 5)), [[0], [1], [2]])


@pytest.mark.parametrize("build", [PruMerge, PruMergePlus])
@pytest.mark.parametrize("ratio", [None, 0.25])
@given(seed=st.integers(0, 999), order=st.sampled_from(["attention", "spatial"]))
def test_a_clip_as_one_row_equals_the_loop_over_all_its_patches(
    build: type[PruMerge], ratio: float | None, seed: int, order: str
) -> None:
    """One fence, neighbours from any frame, one residual."""
    config = PruMergeConfig(ratio=ratio, scope="clip", order=order, knn=5)
    assert_equals_loop(build(config), tokens(seed, (2, 2), grid=(2, 4)), [[0, 1], [2, 3]])


@pytest.mark.parametrize("name", ["prumerge", "prumerge+"])
def test_constant_attention_has_no_outlier(name: str) -> None:
    """PruMerge leaves the residual alone; PruMerge+ its grid of every fifth patch, and the residual."""
    reduced = parse(name).reduce(tokens(0, (2,), constant=True))
    kept = reduced.anchor[reduced.kind == ENRICHED].tolist()
    assert kept == ([] if name == "prumerge" else [0, 5, 10, 16, 21, 26])
    assert (reduced.kind == AGGREGATE).sum() == 2


@given(seed=st.integers(0, 999), lengths=LENGTHS, scope=st.sampled_from(["frame", "clip"]))
def test_a_patch_is_owned_by_its_own_token_or_the_residual(seed: int, lengths: tuple[int, ...], scope: str) -> None:
    """The residual's size is what was not kept."""
    reduced = parse(f"prumerge+(ratio=0.125, scope={scope})").reduce(tokens(seed, lengths))
    assert reduced.owner is not None
    for clip, (frames, owner) in enumerate(zip(lengths, reduced.owner.split([16 * n for n in lengths]), strict=True)):
        size = reduced.size[reduced.clip(clip)]
        assert float(size.sum()) == frames * 16
        assert torch.equal(owner.long().bincount(minlength=len(size)).float(), size)


def test_a_truncated_count_loses_one_token_where_published_code_does() -> None:
    """int(N * (count / N)) for N = 196 and count 29 or so; never for 256."""
    lost = [count for count in range(1, 50) if int(196 * (count / 196)) < count]
    assert lost
    batch = tokens(0, (1,), grid=(14, 14))
    scores = torch.full((1, 196), 0.001) + torch.arange(196) * 1e-6
    scores[0, : lost[0]] = 0.5 + torch.arange(lost[0]) * 0.01
    captures = {need: scores if need.kind == "cls_attn" else value for need, value in batch.captures.items()}
    specs = ("prumerge", "prumerge(int_truncation=true, compat=true)")
    ours, published = (parse(spec).reduce(replace(batch, captures=captures)) for spec in specs)
    assert len(ours.features) == lost[0] + 1
    assert len(published.features) == lost[0]


@pytest.mark.parametrize("options", [{"duplicates": True}, {"int_truncation": True}, {"scope": "batch"}])
def test_published_accidents_have_to_be_asked_for(options: dict[str, object]) -> None:
    """With compat=True, never by themselves."""
    with pytest.raises(ReducerError, match="compat"):
        PruMergeConfig(**options)
    assert PruMergeConfig(**options, compat=True).compat


@pytest.mark.parametrize("options", [{"ratio": 1.5}, {"ratio": -0.1}, {"knn": -1}, {"iqr_factor": float("nan")}])
def test_numbers_without_meaning_are_refused(options: dict[str, float]) -> None:
    """When the config is made, not when a video is there."""
    with pytest.raises(BudgetError):
        PruMergeConfig(**options)


def test_an_adaptive_budget_has_no_ratio() -> None:
    """One or the other."""
    with pytest.raises(BudgetError, match="adaptive"):
        PruMergeConfig(adaptive=True, ratio=0.25)
