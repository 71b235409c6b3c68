"""Token counts that `--dry-run` states as exact are those of every clip; the others vary."""

import pytest
import torch

from pipeline.models.checkpoint import Checkpoint
from pipeline.models.tower import Tower, blocks_to_run
from reducers.methods.tome import ToMe
from reducers.registry import parse
from reducers.token_count import has_fixed_count, merged_count
from tests.models import tiny_checkpoint
from tests.reducers.test_invariants import SPECS, reduce, tokens

FIXED = [spec for spec in (*SPECS, "prumerge+(ratio=0.25, duplicates=true, compat=true)") if has_fixed_count(parse(spec))]


@pytest.mark.parametrize("spec", FIXED)
def test_a_fixed_count_is_the_same_for_random_and_constant_clips(spec: str) -> None:
    reducer = parse(spec)
    clips = [tokens(seed, (8,), grid=(6, 6), constant=seed == 0) for seed in range(12)]
    assert len({len(reduce(reducer, clip).features) for clip in clips}) == 1


def test_counts_that_are_not_fixed_vary() -> None:
    """Otherwise `has_fixed_count` could return False for every method."""
    for spec in ("prumerge", "prumerge+", "hired(rate=0.3, spatial_tokens=4)"):
        reducer = parse(spec)
        assert not has_fixed_count(reducer)
        assert len({len(reduce(reducer, tokens(seed, (8,), grid=(6, 6))).features) for seed in range(12)}) > 1, spec
    assert sum(has_fixed_count(parse(spec)) for spec in SPECS) > len(SPECS) / 2


@pytest.mark.parametrize("spec", ["tome(keep=5)", "tome", "tome(keep=1)", "tome(r=3)", "tome(r=3, inflection=-1)", "tome(r=0)"])
def test_the_count_of_merging_inside_the_tower_is_that_of_a_real_tower(spec: str, tmp_path) -> None:
    reducer = parse(spec)
    assert isinstance(reducer, ToMe)
    checkpoint = Checkpoint.open(tiny_checkpoint(tmp_path / "tiny"))
    frames = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    left = Tower(checkpoint, device="cpu", dtype="float32").merged(frames, reducer, torch.tensor([0, 3]))
    shape = checkpoint.tower_shape()
    blocks = blocks_to_run(shape.blocks, checkpoint.layer)
    assert merged_count(reducer, frames=3, patches=16, blocks=blocks) == len(left.features)
