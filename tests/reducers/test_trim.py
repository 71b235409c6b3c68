"""TRIM against a slow loop, both signs, every scope, and what it refuses."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reducers.base import AGGREGATE, KEPT, ReducerError, TextQuery, VisualTokens
from reducers.methods.trim import Trim, TrimConfig
from reducers.registry import parse
from tests.reducers.test_invariants import LENGTHS, tokens
from tests.reducers.test_reference import quantile


def texts(clips: int, seed: int = 0) -> TextQuery:
    return TextQuery(embedding=torch.randn(clips, 6, generator=torch.Generator().manual_seed(seed)))


def scores(batch: VisualTokens, frame: int, text: torch.Tensor, sign: str) -> list[float]:
    """One frame, one patch at a time."""
    assert batch.clip_space is not None
    found = []
    for patch in batch.clip_space[frame]:
        dot = sum(float(a) * float(b) for a, b in zip(patch, text, strict=True))
        found.append(dot / (float(patch.norm()) * float(text.norm())) if sign == "cosine" else -dot)
    return found


def trim_loop(features: torch.Tensor, scored: list[float], ratio: float | None) -> tuple[list[int], torch.Tensor]:
    """One row: softmax, fence or share, kept patches ascending, the mean of the others."""
    top = max(scored)
    powers = [math.exp(score - top) for score in scored]
    shares = [power / sum(powers) for power in powers]
    order = sorted(range(len(shares)), key=lambda at: (-shares[at], at))
    if ratio is None:
        low, high = quantile(shares, 0.25), quantile(shares, 0.75)
        kept = sorted(at for at in order if shares[at] > high + 1.5 * (high - low))
    else:
        kept = sorted(order[: int(len(shares) * ratio)])
    rest = [at for at in range(len(shares)) if at not in kept]
    rows = [features[at] for at in kept]
    if rest:
        rows.append(sum(features[at] for at in rest) / len(rest))
    return kept, torch.stack(rows)


@pytest.mark.parametrize("sign", ["negative_dot", "cosine"])
@pytest.mark.parametrize("ratio", [None, 0.25, 0.3, 1.0])
@given(seed=st.integers(0, 1000))
def test_trim_equals_a_loop_over_frames_and_patches(sign: str, ratio: float | None, seed: int) -> None:
    """The same patches, ascending, unchanged; the mean of the others last, and none where nothing is left over."""
    batch, asked = tokens(seed, (2, 1), grid=(4, 5)), texts(2, seed)
    reduced = Trim(TrimConfig(ratio=ratio, score=sign)).reduce(batch, asked)
    anchors, rows = [], []
    for frame, clip in enumerate((0, 0, 1)):
        kept, values = trim_loop(batch.features[frame], scores(batch, frame, asked.embedding[clip], sign), ratio)
        anchors += [*kept, *([-1] if len(kept) < 20 else [])]
        rows.append(values)
    assert [int(anchor) % 20 if anchor >= 0 else -1 for anchor in reduced.anchor] == anchors
    torch.testing.assert_close(reduced.features, torch.cat(rows), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_a_clip_as_one_row_equals_the_loop_over_all_its_patches(seed: int) -> None:
    """One softmax, one fence, one mean, whatever other clips are longer."""
    batch, asked = tokens(seed, (3, 1), grid=(2, 4)), texts(2, seed)
    reduced = Trim(TrimConfig(scope="clip")).reduce(batch, asked)
    for clip, frames in enumerate(((0, 1, 2), (3,))):
        scored = [one for frame in frames for one in scores(batch, frame, asked.embedding[clip], "negative_dot")]
        kept, values = trim_loop(batch.features[list(frames)].flatten(0, 1), scored, None)
        span = reduced.clip(clip)
        assert reduced.anchor[span].tolist() == [*kept, -1]
        torch.testing.assert_close(reduced.features[span], values, atol=1e-5, rtol=1e-5)


@given(seed=st.integers(0, 1000), frames=st.integers(1, 4))
def test_the_two_signs_rank_opposite_where_all_vectors_have_length_one(seed: int, frames: int) -> None:
    """What one keeps first the other keeps last: half and half share no patch and cover all."""
    batch, asked = tokens(seed, (frames,)), texts(1, seed)
    assert batch.clip_space is not None
    batch = replace(batch, clip_space=batch.clip_space / batch.clip_space.norm(dim=-1, keepdim=True))
    far, near = (parse(f"trim(ratio=0.5, score={sign})").reduce(batch, asked) for sign in ("negative_dot", "cosine"))
    least, most = (set(one.anchor[one.kind == KEPT].tolist()) for one in (far, near))
    assert not least & most
    assert len(least | most) == frames * 16


def test_patches_all_alike_leave_only_their_mean() -> None:
    """No outlier, no error; with a share the first patches win."""
    batch = tokens(0, (2,))
    batch = replace(batch, clip_space=torch.ones(2, 16, 6))
    adaptive = parse("trim").reduce(batch, texts(1))
    assert adaptive.kind.tolist() == [AGGREGATE, AGGREGATE]
    torch.testing.assert_close(adaptive.features, batch.features.mean(1))
    assert parse("trim(ratio=0.25)").reduce(batch, texts(1)).anchor.tolist() == [0, 1, 2, 3, -1, 16, 17, 18, 19, -1]


@given(seed=st.integers(0, 1000), lengths=LENGTHS, scope=st.sampled_from(["frame", "clip"]))
def test_sizes_count_every_patch_and_owners_point_at_them(seed: int, lengths: tuple[int, ...], scope: str) -> None:
    """Nothing is dropped: each patch is kept or in the mean."""
    reduced = parse(f"trim(ratio=0.3, scope={scope})").reduce(tokens(seed, lengths), texts(len(lengths), seed))
    assert reduced.owner is not None
    first = 0
    for clip, frames in enumerate(lengths):
        span, owner = reduced.clip(clip), reduced.owner[first : first + frames * 16].long()
        assert torch.equal(owner.bincount(minlength=len(reduced.size[span])).float(), reduced.size[span])
        first += frames * 16


def test_the_pooled_fence_is_an_accident_to_be_asked_for() -> None:
    """With compat, every frame keeps as many: its share of all outliers, rounded down."""
    with pytest.raises(ReducerError, match="compat"):
        parse("trim(scope=batch)")
    batch, asked = tokens(4, (3, 2)), texts(2)
    reduced = parse("trim(scope=batch, compat=true)").reduce(batch, asked)
    shares = torch.tensor([scores(batch, at, asked.embedding[at // 3], "negative_dot") for at in range(5)]).softmax(1)
    flat = shares.flatten().tolist()
    low, high = quantile(flat, 0.25), quantile(flat, 0.75)
    each = int(16 * (sum(share > high + 1.5 * (high - low) for share in flat) / len(flat)))
    assert each > 0
    assert (reduced.kind == KEPT).sum() == 5 * each
    assert (reduced.ptr.diff() == torch.tensor([3, 2]) * (each + 1)).all()


@pytest.mark.parametrize(
    ("embedding", "said"),
    [
        (torch.ones(1, 6), "expected text"),
        (torch.ones(2, 5), "expected text"),
        (torch.tensor([[1.0] * 6, [1.0] * 5 + [math.nan]]), "clip 1"),
    ],
)
def test_a_text_that_does_not_fit_is_refused(embedding: torch.Tensor, said: str) -> None:
    """One finite text per clip, of the width of the joint space."""
    with pytest.raises(ReducerError, match=said):
        parse("trim").reduce(tokens(0, (1, 2)), TextQuery(embedding=embedding))


def test_without_a_question_or_the_joint_space_it_says_what_it_needs() -> None:
    """Never a choice by foreign vectors."""
    with pytest.raises(ReducerError, match="question"):
        parse("trim").reduce(tokens(0, (1,)))
    with pytest.raises(ReducerError, match="joint"):
        parse("trim").reduce(replace(tokens(0, (1,)), clip_space=None), texts(1))
