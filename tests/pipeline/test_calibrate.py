"""The sample that thresholds are taken from: which videos are drawn, and which of them count."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from pipeline.decode.config import DecodeConfig
from pipeline.decode.stage import Decode
from pipeline.encode.calibration import draw, measure, quantiles
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.tower import Tower
from pipeline.schema import CORPUS
from tests.models import tiny_checkpoint
from tests.tables import corpus

VIDEOS = Path(__file__).parents[1] / "videos"
NAMES = [f"v{number}" for number in range(12)]


def drawn(videos: int, seed: int = 0, names: list[str] = NAMES) -> list[str]:
    found: list[str] = draw(corpus(*names), videos, seed)["video_id"].to_pylist()
    return found


@pytest.mark.parametrize("videos", [1, 5, 11, 12, 99])
def test_as_many_are_drawn_as_were_asked_for(videos: int) -> None:
    """All, where there are no more; none twice; a smaller sample is the beginning of a larger one."""
    assert len(drawn(videos)) == min(videos, 12)
    assert drawn(videos) == drawn(12)[:videos]
    assert sorted(drawn(12)) == sorted(NAMES)


def test_a_draw_is_by_seed_and_id_alone() -> None:
    """Neither the order of the corpus nor what else is in it moves a video before another."""
    assert drawn(12, names=NAMES[::-1]) == drawn(12)
    assert [name for name in drawn(12) if name in NAMES[:6]] == drawn(6, names=NAMES[:6])
    assert drawn(12, seed=1) != drawn(12)


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Tower:
    path = tiny_checkpoint(tmp_path_factory.mktemp("calibrate") / "tiny")
    return Tower(Checkpoint.open(path), device="cpu", dtype="float32")


def videos(*names: str) -> pa.Table:
    rows = [{"video_id": name, "uri": str(VIDEOS / name), "source_hint": "{}"} for name in names]
    return pa.Table.from_pylist(rows, schema=CORPUS)


def measured(tower: Tower, *names: str, batch: int = 8) -> Any:
    return measure(videos(*names), lambda: Decode(DecodeConfig(), tower.side_px), tower, batch)


def test_a_video_that_cannot_be_looked_at_is_named_and_counts_for_nothing(tower: Tower) -> None:
    """One without pictures, one that overflows the tower; the others are measured as if they were alone."""
    good, bad, none = "testsrc2.mp4", "video_90.mov", "sine_mono_s16.wav"
    alone = measured(tower, good)
    assert (alone.videos, alone.failures) == (1, {})
    shown: list[int] = []

    def poison(_module: Any, _given: Any, output: torch.Tensor) -> torch.Tensor:
        shown.append(len(output))
        return output if len(shown) == 1 else output * torch.inf

    hook = tower.model.embeddings.register_forward_hook(poison)
    mixed = measured(tower, good, bad, none, batch=1)
    hook.remove()
    assert (mixed.videos, mixed.failures) == (1, {bad: "ENCODE_FAILED", none: "NO_VIDEO_STREAM"})
    assert mixed.sample.patches == 16
    for name, values in alone.sample.values.items():
        assert torch.equal(mixed.sample.values[name], values), name
    assert quantiles(mixed.sample) == quantiles(alone.sample)


def test_no_video_that_can_be_looked_at_is_no_sample(tower: Tower) -> None:
    """And no error: the job says what is missing."""
    found = measured(tower, "sine_mono_s16.wav")
    assert (found.sample, found.videos, found.failures) == (None, 0, {"sine_mono_s16.wav": "NO_VIDEO_STREAM"})
