"""`VisualTokens.from_features`: tensors of any CLIP-like tower, and what reducers ask for of them."""

import pytest
import torch

from framefold import Capture, ReducerError, VisualTokens, reducer
from reducers.ops.attention import mean_over_heads

SPECS = [
    "none",
    "nest(keep=20)",
    "prumerge+(ratio=0.25)",
    "visionzip(dominant=4,contextual=2)",
    "evs(ratio=0.25)",
    "spatial(k=4)",
]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def tower(clips: int) -> dict[str, torch.Tensor]:
    """Outputs of a tower (V, F, ...): 3 frames of 4 x 4 patches of width 8."""
    return {
        "features": drawn(clips, 3, 16, 8),
        "cls_rows": drawn(clips, 3, 8, seed=1),
        "attention": drawn(clips, 3, 16, seed=2),
        "keys": drawn(clips, 3, 16, 8, seed=3),
    }


@pytest.mark.parametrize("spec", SPECS)
def test_clips_together_reduce_as_each_by_itself(spec: str) -> None:
    """(V, F, N, D) is V clips; (F, N, D) is one."""
    seen, method = tower(2), reducer(spec)
    together = method.reduce(VisualTokens.from_features(**seen, heads=2))
    for number in range(2):
        alone = method.reduce(VisualTokens.from_features(**{name: rows[number] for name, rows in seen.items()}, heads=2))
        span = together.clip(number)
        assert torch.equal(together.anchor[span], alone.anchor)
        torch.testing.assert_close(together.features[span], alone.features)


def test_attention_decides_what_is_kept() -> None:
    attention = torch.zeros(1, 16)
    attention[0, [3, 9]] = 1.0
    tokens = VisualTokens.from_features(torch.zeros(1, 16, 8), attention=attention, keys=torch.zeros(1, 16, 8), heads=2)
    kept = reducer("visionzip(dominant=2,contextual=0)").reduce(tokens)
    assert kept.anchor.tolist()[:2] == [3, 9]


def test_bounds_of_unequal_clips_are_kept() -> None:
    tokens = VisualTokens.from_features(drawn(5, 6, 8), grid=(2, 3), clip_ptr=torch.tensor([0, 2, 5]))
    assert tokens.grid == (2, 3)
    assert reducer("none").reduce(tokens).ptr.tolist() == [0, 12, 30]


def test_keys_are_averaged_over_heads_where_a_reducer_asks() -> None:
    keys = drawn(2, 16, 8)
    tokens = VisualTokens.from_features(drawn(2, 16, 8), keys=keys, heads=2)
    found = tokens.capture(Capture(kind="keys", heads="mean"))
    torch.testing.assert_close(found, mean_over_heads(keys, 2))
    assert torch.equal(tokens.capture(Capture(kind="keys", block="first", heads="concat")), keys)


def test_exact_capture_replaces_attention() -> None:
    exact, need = drawn(2, 16, seed=5), Capture(kind="cls_attn", block="next")
    tokens = VisualTokens.from_features(drawn(2, 16, 8), attention=drawn(2, 16, seed=6), captures={need: exact})
    assert torch.equal(tokens.capture(need), exact)
    assert not torch.equal(tokens.capture(Capture(kind="cls_attn")), exact)


def test_reducer_without_its_capture_is_refused() -> None:
    with pytest.raises(ReducerError, match=r"expected capture .*cls_attn"):
        reducer("evs(ratio=0.25)").reduce(VisualTokens.from_features(drawn(2, 16, 8)))


WRONG = {
    "features of two axes": ({"features": torch.zeros(16, 8)}, r"expected float features .* got \(16, 8\)"),
    "integer features": ({"features": torch.zeros(2, 16, 8, dtype=torch.int64)}, "of torch.int64"),
    "patches that are no square": ({"features": torch.zeros(2, 15, 8)}, r"15 patches are no square: pass grid="),
    "a grid of other patches": (
        {"features": torch.zeros(2, 16, 8), "grid": (3, 5)},
        "expected 3 x 5 patches per frame, got 16",
    ),
    "CLS of other frames": ({"features": torch.zeros(2, 16, 8), "cls_rows": torch.zeros(3, 8)}, r"expected CLS rows \(2, 8\)"),
    "attention of other patches": (
        {"features": torch.zeros(2, 16, 8), "attention": torch.zeros(2, 17)},
        r"expected attention of 2 frames and 16 patches, got \(2, 17\)",
    ),
    "attention with heads": (
        {"features": torch.zeros(2, 16, 8), "attention": torch.zeros(2, 4, 16)},
        r"expected attention of 2 frames and 16 patches, got \(2, 4, 16\)",
    ),
    "keys of other frames": ({"features": torch.zeros(2, 16, 8), "keys": torch.zeros(1, 16, 8)}, "expected keys of 2 frames"),
    "heads that do not divide": (
        {"features": torch.zeros(2, 16, 8), "keys": torch.zeros(2, 16, 8), "heads": 3},
        "expected heads that divide the width 8 of keys, got 3",
    ),
    "bounds that fall": (
        {"features": torch.zeros(3, 16, 8), "clip_ptr": torch.tensor([0, 2, 1, 3])},
        r"expected clip_ptr .* got \[0, 2, 1, 3\]",
    ),
    "bounds of other frames": (
        {"features": torch.zeros(3, 16, 8), "clip_ptr": torch.tensor([0, 2])},
        r"expected clips to cover 3 frames, got bounds \[0, 2\]",
    ),
    "bounds beside an axis of clips": (
        {"features": torch.zeros(1, 3, 16, 8), "clip_ptr": torch.tensor([0, 3])},
        r"clip_ptr is for features \(F, N, D\)",
    ),
    "vectors of other patches": (
        {"features": torch.zeros(2, 16, 8), "clip_space": torch.zeros(2, 15, 4)},
        r"expected clip_space of 2 frames and 16 patches, got \(2, 15, 4\)",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_shapes_that_do_not_fit_are_refused_in_one_line(case: str) -> None:
    settings, said = WRONG[case]
    with pytest.raises(ReducerError, match=said) as caught:
        VisualTokens.from_features(**settings)
    assert "\n" not in str(caught.value)
