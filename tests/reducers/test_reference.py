"""PruMerge and VisionZip once more, as slow loops over frames and tokens written from their papers' text."""

import math

import pytest
import torch

from reducers.registry import parse
from tests.reducers.test_invariants import clip, tokens


def quantile(values: list[float], share: float) -> float:
    place = share * (len(values) - 1)
    below = math.floor(place)
    above = min(below + 1, len(values) - 1)
    ordered = sorted(values)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def prumerge_loop(features: torch.Tensor, keys: torch.Tensor, scores: list[float], knn: int) -> tuple[list[int], torch.Tensor]:
    """One frame: outliers by the quartile rule; each takes in its nearest by cosine of keys, weighted by attention."""
    low, high = quantile(scores, 0.25), quantile(scores, 0.75)
    order = sorted(range(len(scores)), key=lambda at: (-scores[at], at))
    kept = [at for at in order if scores[at] > high + 1.5 * (high - low)]
    rows = []
    for centre in kept:
        likeness = {}
        for other in range(len(scores)):
            if other != centre:
                a, b = keys[centre], keys[other]
                likeness[other] = float(a @ b / (a.norm() * b.norm()))
        near = sorted(likeness, key=lambda at: (-likeness[at], at))[:knn]
        rows.append(features[centre] + sum(scores[at] * features[at] for at in near))
    rest = [at for at in range(len(scores)) if at not in kept]
    rows.append(sum(scores[at] * features[at] for at in rest))
    return kept, torch.stack(rows)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("knn", [0, 3, 32])
def test_prumerge_equals_a_loop_over_frames_and_tokens(seed: int, knn: int) -> None:
    """The same patches in the same order, the same values."""
    reducer = parse(f"prumerge(knn={knn})")
    batch = tokens(seed, (3, 2), grid=(4, 5))
    reduced = reducer.reduce(batch)
    by_frame = [one for number in range(2) for one in range(*batch.clip_ptr[number : number + 2].tolist())]
    expected_rows, expected_anchors = [], []
    for frame in by_frame:
        keys, scores = batch.capture(reducer._keys)[frame], batch.capture(reducer._attention)[frame].tolist()
        kept, rows = prumerge_loop(batch.features[frame], keys, scores, knn)
        expected_rows.append(rows)
        expected_anchors += [*kept, None]
    ours = [int(a) % 20 if a >= 0 else None for a in reduced.anchor]
    assert ours == expected_anchors
    torch.testing.assert_close(reduced.features, torch.cat(expected_rows), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_visionzip_keeps_the_best_attended_and_merges_the_rest_into_the_contextual(seed: int) -> None:
    """One frame: dominant patches by attention, contextual targets at even steps, each other patch to its most similar."""
    reducer = parse("visionzip(dominant=4, contextual=3)")
    batch = clip(tokens(seed, (1,), grid=(4, 5)), 0)
    reduced = reducer.reduce(batch)
    scores = batch.capture(reducer.attention)[0].tolist()
    keys = batch.capture(reducer.keys)[0]
    dominant = sorted(sorted(range(20), key=lambda at: (-scores[at], at))[: int((reduced.kind == 0).sum())])
    rest = [at for at in range(20) if at not in dominant]
    targets = [int(a) for a in reduced.anchor[reduced.kind == 2]]
    assert set(targets) <= set(rest)
    unit = keys / keys.norm(dim=-1, keepdim=True)
    sums = {target: [batch.features[0, target]] for target in targets}
    for at in rest:
        if at not in targets:
            best = max(targets, key=lambda target: (float(unit[at] @ unit[target]), -targets.index(target)))
            sums[best].append(batch.features[0, at])
    contextual = reduced.features[reduced.kind == 2]
    for row, target in zip(contextual, targets, strict=True):
        head, *merged = sums[target]
        expected = head + sum(merged) / max(1, len(merged)) if merged else head
        torch.testing.assert_close(row, expected, atol=1e-4, rtol=1e-4)
    assert [int(a) for a in reduced.anchor[reduced.kind == 0]] == dominant
