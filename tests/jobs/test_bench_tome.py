"""The measurement of token merging inside the tower: it runs what encoding runs, and later blocks do see fewer rows."""

import re
from pathlib import Path

import pytest
import torch

from jobs.bench.tome import main, merged, tome_savings
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.tower import Tower
from reducers.methods.tome import ToMe
from reducers.registry import parse
from tests.models import tiny_checkpoint


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Tower:
    path = tiny_checkpoint(Path(tmp_path_factory.mktemp("tome")) / "tiny")
    return Tower(Checkpoint.open(path), device="cpu", dtype="float32")


def test_what_is_timed_is_what_encoding_runs(tower: Tower) -> None:
    """The same rows as `tome` leaves in the encode stage."""
    frames = torch.randint(0, 256, (8, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    reducer = parse("tome(keep=6)")
    assert isinstance(reducer, ToMe)
    stored = tower.merged(frames, reducer, torch.tensor([0, 8]))
    rows = merged(tower.model, tower._pixels(frames), 6)
    torch.testing.assert_close(rows[:, 1:].flatten(0, 1), stored.features)


def test_later_blocks_see_fewer_rows(tower: Tower) -> None:
    """That, and nothing else, is where the time goes: all 17 rows without merging, down to 7 with it."""
    seen: list[int] = []
    hooks = [block.mlp.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[1]))
             for block in tower.model.encoder.layers]  # fmt: skip
    merged(tower.model, torch.randn(2, 3, 32, 32), 6)
    for hook in hooks:
        hook.remove()
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] == 7 < seen[0] < 17
    assert len(seen) == 3


def test_each_line_says_what_was_left(tower: Tower) -> None:
    """More than asked for where a block would have to merge more than half."""
    lines = tome_savings(tower.model, torch.randn(2, 3, 32, 32), [16, 6, 1], repeat=1)
    assert [line.keep for line in lines] == [16, 6, 1]
    assert [line.left for line in lines][:2] == [16, 6]
    assert lines[2].left > 1
    assert all(line.speedup == line.plain_s / line.merged_s for line in lines)


def test_the_command_prints_a_ratio_for_each_share(capsys: pytest.CaptureFixture[str]) -> None:
    """Beside the tower without merging."""
    assert main(["--geometry", "demo", "--dtype", "float32", "--repeat", "1", "--share", "0.5", "0.25"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"none +64 patches per frame +[\d.]+ ms per clip +1\.00x", shown)
    assert re.findall(r"tome\(keep=(\d+)\) +(\d+) patches per frame +[\d.]+ ms per clip +[\d.]+x", shown) == [
        ("32", "32"), ("16", "16")
    ]  # fmt: skip
