"""HoliTom: the best windows, merged still patches, and changing ones with contexts of their own."""

from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reducers.base import CONTEXTUAL, BudgetError, ReducerError
from reducers.methods.holitom import HoliTomConfig, holitom
from reducers.ops.clip_budget import Budget, Clip, clips_of
from reducers.ops.segments import saved, windows
from tests.reducers.test_fit import related


@given(
    same=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=0, max_size=6),
    longest=st.integers(1, 7),
)
def test_the_windows_are_the_best_of_all_partitions(same: list[list[bool]], longest: int) -> None:
    """By trying every set of cuts."""
    frames = len(same) + 1
    spans, still = windows(torch.tensor(same, dtype=torch.bool).view(-1, 3), longest)
    best = 0
    for number in range(frames):
        for cuts in combinations(range(1, frames), number):
            edges = [0, *cuts, frames]
            parts = list(pairwise(edges))
            if all(end - start <= longest for start, end in parts):
                gains = [
                    (end - start - 1) * sum(all(same[f][n] for f in range(start, end - 1)) for n in range(3))
                    for start, end in parts
                ]
                best = max(best, sum(gains))
    assert saved(spans, still) == best
    assert [start for start, _ in spans] == [0, *(end + 1 for _, end in spans[:-1])]
    assert spans[-1][1] == frames - 1
    assert all(end - start < longest for start, end in spans)
    assert not any(still[row].any() for row, (start, end) in enumerate(spans) if start == end)


def merged_by_hand(rows: dict[int, torch.Tensor], centres: int, beta: float) -> dict[int, torch.Tensor]:
    """Density peaks and joining, point by point."""
    names, width = sorted(rows), len(next(iter(rows.values())))
    gap = {(i, j): float((rows[i].double() - rows[j].double()).norm()) / width**0.5 for i in names for j in names}
    near = {i: sorted(gap[i, j] ** 2 for j in names)[: min(7, len(names))] for i in names}
    density = {i: float(torch.tensor(-sum(near[i]) / len(near[i]), dtype=torch.float64).exp()) for i in names}
    apart = {i: min([gap[i, j] for j in names if density[j] > density[i]], default=max(gap.values())) for i in names}
    chosen = sorted(names, key=lambda i: (-density[i] * apart[i], i))[:centres]
    members: dict[int, list[int]] = {centre: [] for centre in chosen}
    for i in names:
        if i not in members and members:
            members[min(members, key=lambda centre: (gap[i, centre], centre))].append(i)
    means = {centre: torch.stack([rows[i] for i in joined or [centre]]).mean(0) for centre, joined in members.items()}
    return {centre: beta * rows[centre] + (1 - beta) * means[centre] for centre in members}


def by_hand(clip: Clip, ratio: float, share: float) -> dict[int, torch.Tensor]:
    """Section 5.4 for one clip, window by window."""
    patches, same = clip.a.shape[1], torch.cosine_similarity(clip.x[:-1], clip.x[1:], dim=-1) > 0.3
    spans, still = windows(same, len(clip.x))
    ratio, out = min(1, ratio / (1 - saved(spans, still) / clip.a.numel())), {}
    for (start, end), row in zip(spans, still, strict=True):
        fixed = row.nonzero()[:, 0].tolist()
        means = {n: clip.x[start : end + 1, n].mean(0) for n in fixed}
        for centre, value in merged_by_hand(means, round(len(fixed) * ratio), 0.6).items() if fixed else ():
            out[start * patches + centre] = value
        for frame in range(start, end + 1):
            moving = [n for n in range(patches) if n not in fixed]
            wanted = -int(-len(moving) * ratio // 1)
            plain = sorted(moving, key=lambda n: (-float(clip.a[frame, n]), n))[: round(wanted * (1 - share))]
            out.update({frame * patches + n: clip.x[frame, n] for n in plain})
            rest = {n: clip.x[frame, n] for n in moving if n not in plain}
            for centre, value in merged_by_hand(rest, wanted - len(plain), 0.6).items() if rest else ():
                out[frame * patches + centre] = value
    return {anchor: out[anchor] for anchor in sorted(out)}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_tokens_are_those_of_a_loop(seed: int, share: float) -> None:
    """With and without contextual tokens, which the published code cannot do (A6)."""
    clip = clips_of(related(seed, (4,), "noisy"))[0]
    budget = Budget(patches=24, ratio=0.375, cls=False)
    found = holitom(clip, budget, HoliTomConfig(tau=0.3, context_share=share))
    expected = by_hand(clip, 0.375, share)
    assert found.anchor.tolist() == list(expected)
    torch.testing.assert_close(found.features, torch.stack(list(expected.values())), atol=1e-5, rtol=1e-5)


def test_a_still_clip_is_one_window_whose_tokens_speak_for_all_frames() -> None:
    """Four exact copies: at a quarter of the tokens, nothing is lost."""
    clip = clips_of(related(1, (4,), "exact"))[0]
    found = holitom(clip, Budget(patches=16, ratio=0.25, cls=False), HoliTomConfig())
    assert found.anchor.tolist() == list(range(16))
    torch.testing.assert_close(found.features, clip.x[0])
    assert found.size.tolist() == [4.0] * 16
    assert (found.kind == CONTEXTUAL).all()


@pytest.mark.parametrize("wrong", [{"beta": 1.1}, {"context_share": -0.1}, {"neighbours": 0}, {"max_window": 0}])
def test_a_config_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    """Before any clip is read."""
    with pytest.raises(BudgetError):
        HoliTomConfig(**wrong)
    with pytest.raises(ReducerError):
        HoliTomConfig(tau=1.5)
