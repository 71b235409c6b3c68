"""Token merging inside the tower: counts, maps, and what merging nothing leaves."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.models.checkpoint import Checkpoint
from pipeline.models.tower import Tower
from reducers.base import BudgetError, ReducerError
from reducers.methods.tome import ToMe, ToMeConfig, even_schedule, match, merge, schedule
from reducers.registry import parse
from tests.models import tiny_checkpoint
from tests.reducers.test_invariants import tokens


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Tower:
    path = tiny_checkpoint(tmp_path_factory.mktemp("tome") / "tiny")
    return Tower(Checkpoint.open(str(path)), device="cpu", dtype="float32")


def frames(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@given(rows=st.integers(2, 40), r=st.integers(0, 30), seed=st.integers(0, 1000), class_token=st.booleans())
def test_a_merge_keeps_all_mass_and_never_merges_cls(rows: int, r: int, seed: int, class_token: bool) -> None:
    """Sizes sum to the rows there were, weighted sums stay, every row has a place, every place a row."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(3, rows, 5, generator=draw)
    size = torch.randint(1, 4, (3, rows), generator=draw).float()
    found = match(torch.randn(3, rows, 4, generator=draw), r, class_token=class_token)
    merged, sizes = merge(x, size, found)
    assert found.rows == rows - min(r, (rows - class_token) // 2)
    torch.testing.assert_close(sizes.sum(1), size.sum(1))
    torch.testing.assert_close((merged * sizes[..., None]).sum(1), (x * size[..., None]).sum(1), atol=1e-4, rtol=1e-4)
    assert all(set(one.tolist()) == set(range(found.rows)) for one in found.slot)
    if class_token:
        assert (found.slot[:, 0] == 0).all()
        torch.testing.assert_close(merged[:, 0], x[:, 0])


@given(rows=st.integers(2, 24), r=st.integers(1, 12), seed=st.integers(0, 1000), class_token=st.booleans())
def test_matching_equals_a_loop_over_rows(rows: int, r: int, seed: int, class_token: bool) -> None:
    """Each even row names its most similar odd row; the best pairs merge, the others keep their order."""
    metric = torch.randn(1, rows, 4, generator=torch.Generator().manual_seed(seed))
    unit = metric[0] / metric[0].norm(dim=-1, keepdim=True)
    even, odd = list(range(0, rows, 2)), list(range(1, rows, 2))
    best = {}
    for row in even[class_token:]:
        best[row] = max((float(unit[row] @ unit[other]), -other) for other in odd)
    by_likeness = sorted(best, key=lambda row: (-best[row][0], row))
    merged = by_likeness[: min(r, (rows - class_token) // 2)]
    left = [row for row in (even if class_token else by_likeness) if row not in merged]
    place = {row: at for at, row in enumerate([*left, *odd])}
    expected = [place[-best[row][1]] if row in merged else place[row] for row in range(rows)]
    if merged:
        assert match(metric, r, class_token=class_token).slot[0].tolist() == expected


def test_half_precision_rows_are_averaged_in_float32() -> None:
    """A thousand rows of 100 would not add up in float16."""
    x = torch.full((1, 2000, 1), 100.0, dtype=torch.float16)
    found = match(torch.ones(1, 2000, 2), 1000, class_token=False)
    merged, size = merge(x, torch.ones(1, 2000), found)
    assert merged.dtype == torch.float16
    assert (merged == 100).all()
    assert size[0, 0] == 1001


def test_schedules_as_published() -> None:
    """One number, a falling pair, a list, and an even spread to a count."""
    assert schedule(8, 3) == [8, 8, 8]
    assert schedule((6, -1.0), 4) == [12, 8, 4, 0]
    assert schedule([5, 2], 4) == [5, 2, 0, 0]
    assert sum(even_schedule(256, 32, 23)) == 224
    assert even_schedule(16, 99, 3) == [0, 0, 0]


def test_merging_nothing_leaves_the_tower_as_it_is(tower: Tower) -> None:
    """The same rows as without merging, in raster order."""
    ends = torch.tensor([0, 4])
    plain = tower(frames(4), frozenset(), ends)
    reduced = tower.merged(frames(4), parse("tome(keep=16)"), ends)
    torch.testing.assert_close(reduced.features.view(4, 16, -1), plain.features, atol=2e-4, rtol=1e-3)
    assert reduced.anchor.tolist() == list(range(64))
    assert (reduced.size == 1).all()


def test_the_asked_number_of_tokens_is_left_of_each_frame(tower: Tower) -> None:
    """Sizes count the patches behind each, the owner map says where each went, clips do not touch."""
    ends = torch.tensor([0, 3, 4])
    reduced = tower.merged(frames(4), parse("tome(keep=6)"), ends)
    assert reduced.ptr.tolist() == [0, 18, 24]
    assert reduced.owner is not None
    for number, (first, last) in enumerate(((0, 3), (3, 4))):
        span = reduced.clip(number)
        owner = reduced.owner[first * 16 : last * 16].long()
        assert float(reduced.size[span].sum()) == 16 * (last - first)
        assert torch.equal(owner.bincount(minlength=len(reduced.size[span])).float(), reduced.size[span])
        alone = tower.merged(frames(4)[first:last], parse("tome(keep=6)"), torch.tensor([0, last - first]))
        torch.testing.assert_close(alone.features, reduced.features[span], atol=1e-4, rtol=1e-4)


def test_a_number_per_block_leaves_what_the_blocks_leave(tower: Tower) -> None:
    """`r` in place of `keep`, falling to nothing or not."""
    ends = torch.tensor([0, 2])
    flat, falling = (tower.merged(frames(2), parse(f"tome({spec})"), ends) for spec in ("r=2", "r=2, inflection=-1"))
    blocks = (16 - len(flat.features) // 2) // 2
    assert blocks >= 1
    assert len(falling.features) // 2 == 16 - sum(schedule((2, -1.0), blocks))


def test_spatial_order_is_by_the_first_patch_behind_a_token(tower: Tower) -> None:
    """The same tokens, anchors rising in each frame, owners following."""
    ends = torch.tensor([0, 2])
    orders = ("produced", "spatial")
    plain, sorted_ = (tower.merged(frames(2), parse(f"tome(keep=6, order={order})"), ends) for order in orders)
    assert plain.owner is not None
    assert sorted_.owner is not None
    order = plain.anchor.argsort()
    assert torch.equal(sorted_.anchor, plain.anchor[order])
    assert torch.equal(sorted_.features, plain.features[order])
    assert torch.equal(sorted_.position, plain.position[order])
    assert torch.equal(sorted_.anchor[sorted_.owner.long()], plain.anchor[plain.owner.long()])


@pytest.mark.parametrize(
    "options",
    [{"keep": 0}, {"r": -1}, {"keep": 8, "r": 2}, {"r": 2, "inflection": 1.5}, {"keep": 8, "inflection": 0.5}],
)
def test_budgets_without_meaning_are_refused(options: dict[str, float]) -> None:
    """When the config is made."""
    with pytest.raises(BudgetError):
        ToMeConfig(**options)


def test_it_refuses_to_run_on_finished_tokens() -> None:
    """One sentence that says where it runs."""
    from tests.reducers.test_invariants import tokens

    with pytest.raises(ReducerError, match="inside the tower"):
        parse("tome").reduce(tokens(0, (2,)))


def test_it_goes_through_the_encode_stage(tmp_path: Path) -> None:
    """Stored as any other reducer's tokens."""
    from pipeline.encode.stage import Encode, EncodeConfig
    from tests.pipeline.test_encode import clips

    stage = Encode(EncodeConfig(model=tiny_checkpoint(tmp_path / "m"), reducer="tome(keep=5)", device="cpu"))
    assert [row["shape"] for row in stage(clips(2)).to_pylist()] == [[40, 32], [40, 32]]


@given(seed=st.integers(0, 999))
def test_a_token_says_where_the_patches_behind_it_are_on_average(seed: int) -> None:
    """Its frame counts from the beginning of its own clip, whoever shares the batch."""
    seen, draw = tokens(seed, (2, 3)), torch.Generator().manual_seed(seed)
    slot_FN = torch.stack([torch.randperm(16, generator=draw) % 5 for _ in range(5)])
    size_FK = torch.nn.functional.one_hot(slot_FN, 5).sum(1).float()
    reduced = ToMe(ToMeConfig(keep=5)).reduced(seen, torch.randn(5, 5, 8, generator=draw), size_FK, slot_FN)
    assert reduced.frame.tolist() == [frame for frames in (2, 3) for frame in range(frames) for _ in range(5)]
    for at in range(25):
        behind = [patch for patch in range(16) if int(slot_FN[at // 5, patch]) == at % 5]
        rows, columns = [patch // 4 for patch in behind], [patch % 4 for patch in behind]
        want = [int(reduced.frame[at]), sum(rows) / len(rows), sum(columns) / len(columns)]
        torch.testing.assert_close(reduced.position[at], torch.tensor(want, dtype=torch.float32))
        assert int(reduced.anchor[at]) == int(reduced.frame[at]) * 16 + min(behind)
        assert float(reduced.size[at]) == len(behind)
