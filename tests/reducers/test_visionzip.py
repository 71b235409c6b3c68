"""VisionZip's options against slow loops: both merges, with and without CLS, attention received, odd budgets."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reducers.base import CLS, CONTEXTUAL, KEPT, VisualTokens
from reducers.methods.visionzip import VisionZip, VisionZipConfig
from reducers.ops.attention import received_attention
from reducers.registry import parse
from tests.reducers.test_invariants import LENGTHS, tokens


def zip_loop(batch: VisualTokens, reducer: VisionZip, frame: int) -> tuple[list[int], list[int], list[torch.Tensor]]:
    """One frame: dominant patches, targets and the values of both, one patch at a time."""
    c, x = reducer.config, batch.features[frame]
    score = batch.capture(reducer.attention)[frame].tolist()
    keys = batch.capture(reducer.keys)[frame]
    unit = keys / keys.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    patches = len(score)
    count = min(c.dominant - (c.keep_cls and batch.cls is not None), patches)
    dominant = sorted(sorted(range(patches), key=lambda at: (-score[at], at))[:count])
    rest = [at for at in range(patches) if at not in dominant]
    step = max(1, len(rest) // c.contextual) if c.contextual else 1
    targets = rest[::step][: c.contextual]
    members: dict[int, list[int]] = {target: [] for target in targets}
    for at in rest:
        if targets and at not in targets:
            members[max(targets, key=lambda target: float(unit[at] @ unit[target]))].append(at)
    rows = [x[at] for at in dominant]
    for target, mine in members.items():
        total = sum((x[at] for at in mine), torch.zeros_like(x[0]))
        if c.merge == "mean":
            rows.append((x[target] + total) / (1 + len(mine)))
        else:
            rows.append(x[target] + total / max(1, len(mine)))
    return dominant, targets, rows


@pytest.mark.parametrize("merge", ["add", "mean"])
@pytest.mark.parametrize("score", ["cls", "received"])
@given(
    seed=st.integers(0, 999),
    dominant=st.integers(1, 22),
    contextual=st.integers(0, 22),
    keep_cls=st.booleans(),
)
def test_visionzip_equals_a_loop(merge: str, score: str, seed: int, dominant: int, contextual: int, keep_cls: bool) -> None:
    """For any budgets: none contextual, more than there are patches, CLS alone."""
    batch = tokens(seed, (2, 1), grid=(4, 5))
    config = VisionZipConfig(dominant=dominant, contextual=contextual, merge=merge, keep_cls=keep_cls, score=score)
    reducer = VisionZip(config)
    reduced = reducer.reduce(batch)
    kinds, anchors, rows = [], [], []
    assert batch.cls is not None
    for frame in range(3):
        first, targets, values = zip_loop(batch, reducer, frame)
        kinds += [CLS] * keep_cls + [KEPT] * len(first) + [CONTEXTUAL] * len(targets)
        anchors += [-1] * keep_cls + first + targets
        rows += [batch.cls[frame]] * keep_cls + values
    assert reduced.kind.tolist() == kinds
    assert [int(anchor) % 20 if anchor >= 0 else -1 for anchor in reduced.anchor] == anchors
    if rows:
        torch.testing.assert_close(reduced.features, torch.stack(rows), atol=1e-5, rtol=1e-4)


@given(seed=st.integers(0, 999), lengths=LENGTHS, contextual=st.integers(1, 20))
def test_sizes_count_every_patch_where_there_is_a_target(seed: int, lengths: tuple[int, ...], contextual: int) -> None:
    """And the owner map agrees with them; CLS speaks for none."""
    reduced = VisionZip(VisionZipConfig(dominant=5, contextual=contextual)).reduce(tokens(seed, lengths))
    assert reduced.owner is not None
    for clip, (frames, owner) in enumerate(zip(lengths, reduced.owner.split([16 * n for n in lengths]), strict=True)):
        size = reduced.size[reduced.clip(clip)]
        assert float(size.sum()) == frames * 16
        assert torch.equal(owner.long().bincount(minlength=len(size)).float(), size)


def test_without_targets_what_is_not_dominant_has_no_owner() -> None:
    """It is dropped."""
    reduced = parse("visionzip(dominant=5, contextual=0)").reduce(tokens(0, (2,)))
    assert reduced.owner is not None
    assert (reduced.owner >= 0).sum() == 8
    assert len(reduced.features) == 10


def test_a_tower_without_cls_keeps_patches_only() -> None:
    """`keep_cls` has nothing to keep: all dominant tokens are patches."""
    batch = replace(tokens(1, (2, 1)), cls=None)
    reduced = parse("visionzip(dominant=5, contextual=3, score=received)").reduce(batch)
    assert reduced.ptr.tolist() == [0, 16, 24]
    assert not (reduced.kind == CLS).any()


def test_a_key_of_length_zero_goes_to_the_first_target() -> None:
    """No division by zero."""
    batch = tokens(2, (1,))
    captures = {need: value * (need.kind != "keys") for need, value in batch.captures.items()}
    reduced = parse("visionzip(dominant=1, contextual=3)").reduce(replace(batch, captures=captures))
    assert reduced.size.tolist() == [0, 14, 1, 1]
    assert reduced.features.isfinite().all()


@given(seed=st.integers(0, 999), heads=st.sampled_from([1, 2, 4]))
def test_attention_received_equals_a_loop_over_heads_and_queries(seed: int, heads: int) -> None:
    """The mean over both of each column of the softmax; a frame hands out one in all."""
    q, k = torch.randn(2, 2, 7, 8, generator=torch.Generator().manual_seed(seed))
    expected, width = torch.zeros(2, 7), 8 // heads
    for frame in range(2):
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            for query in range(7):
                logits = torch.stack([q[frame, query, part] @ k[frame, at, part] for at in range(7)]) / width**0.5
                expected[frame] += logits.softmax(0) / (7 * heads)
    got = received_attention(q, k, heads)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(got.sum(1), torch.ones(2))
