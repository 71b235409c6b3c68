"""The contact sheet: what the tower sees, and that budgets of frames follow it from pixels to stored rows."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import VideoLlavaForConditionalGeneration

from pipeline.encode.stage import Encode, EncodeConfig, check_reducer
from pipeline.errors import ConfigError
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.contact_sheet import contact_sheet, sheet_scores
from pipeline.schema import DECODED
from reducers.methods.hired import sheet_layout
from reducers.ops.budgets import allocate
from tests.models import tiny_checkpoint
from tests.tables import corpus

SPEC = "hired(rate=0.4, frame_score=mosaic)"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_checkpoint(tmp_path_factory.mktemp("sheet") / "tiny")


def colours(seed: int, frames: int) -> np.ndarray:
    """Frames of one colour each: resizing cannot change them."""
    shade = np.random.default_rng(seed).integers(0, 256, (frames, 1, 1, 3), dtype=np.uint8)
    return np.broadcast_to(shade, (frames, 32, 32, 3)).copy()


def by_hand(pixels: torch.Tensor) -> torch.Tensor:
    """The sheet of frames of one colour, patch by patch: patch (i, j) lies in tile (i * rows // 4, j * columns // 4)."""
    rows, columns = sheet_layout(len(pixels))
    sheet = torch.zeros(3, 32, 32)
    for i in range(32):
        for j in range(32):
            tile = i // 8 * rows // 4 * columns + j // 8 * columns // 4
            if tile < len(pixels):
                sheet[:, i, j] = pixels[tile, :, 0, 0]
    return sheet


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 8, 9, 13, 16])
def test_tiles_are_the_regions_that_scores_are_summed_over(frames: int) -> None:
    """Whole patches in raster order, nothing where there is no frame."""
    pixels = torch.randn(frames, 3, 1, 1).expand(-1, -1, 32, 32)
    torch.testing.assert_close(contact_sheet(pixels, (4, 4)), by_hand(pixels), atol=1e-5, rtol=1e-5)


def test_more_frames_than_patches_do_not_fit() -> None:
    """Rather than a sheet that leaves some out."""
    with pytest.raises(ValueError, match="at most 4 x 4 tiles"):
        contact_sheet(torch.zeros(17, 3, 32, 32), (4, 4))


def expected_scores(path: str, stage: Encode, frames: np.ndarray) -> torch.Tensor:
    """Attention of block 0 over a sheet made by hand, from transformers' own maps."""
    whole = VideoLlavaForConditionalGeneration.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    pixels = stage.tower._pixels(torch.from_numpy(frames))
    with torch.inference_mode():
        shown = whole.model.video_tower.eval()(by_hand(pixels)[None], output_attentions=True)
    early = shown.attentions[0][0, :, 0, 1:].sum(0)
    rows, columns = sheet_layout(len(frames))
    scores = torch.zeros(rows * columns, dtype=torch.float64)
    for at in range(16):
        scores[at // 4 * rows // 4 * columns + at % 4 * columns // 4] += float(early[at])
    return scores[: len(frames)]


def test_frames_are_paid_by_their_tile_of_the_contact_sheet_through_the_encode_stage(model: str) -> None:
    """Two clips in one batch; the budgets that are stored are those of transformers' attention over each clip's sheet."""
    stage = Encode(EncodeConfig(model=model, reducer=SPEC, device="cpu"))
    clips = [colours(seed, frames) for seed, frames in ((1, 8), (2, 5))]
    rows = [{**row, "frames": clip.tobytes()} for row, clip in zip(corpus("a", "b").to_pylist(), clips, strict=True)]
    table = pa.Table.from_pylist([{name: row.get(name) for name in DECODED.names} for row in rows], schema=DECODED)
    shared = []
    for row, clip in zip(stage(table).to_pylist(), clips, strict=True):
        counts = np.bincount(np.frombuffer(row["frame"], "<i2"), minlength=len(clip))
        scores = expected_scores(model, stage, clip)
        assert counts.tolist() == allocate(int(len(clip) * 16 * 0.4), scores, 16).tolist()
        shared.append(counts.max() - counts.min())
    assert max(shared) > 1  # an even share would differ by one token at most


def test_scores_of_a_clip_do_not_depend_on_who_shares_the_batch(model: str) -> None:
    """Each clip has a sheet of its own."""
    stage = Encode(EncodeConfig(model=model, reducer=SPEC, device="cpu"))
    pixels = torch.cat([stage.tower._pixels(torch.from_numpy(colours(seed, 4))) for seed in range(3)])
    with torch.inference_mode():
        together = sheet_scores(stage.tower.model, pixels, torch.tensor([0, 4, 8, 12]), (4, 4))
        alone = [sheet_scores(stage.tower.model, part, torch.tensor([0, 4]), (4, 4)) for part in pixels.split(4)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_more_frames_than_a_sheet_shows_are_refused_before_a_video_is_read(model: str) -> None:
    """As any setting that cannot work."""
    check_reducer(SPEC, 16, Checkpoint.open(model))
    with pytest.raises(ConfigError, match="17 frames on a contact sheet of 4 x 4"):
        check_reducer(SPEC, 17, Checkpoint.open(model))


def test_half_precision_towers_see_the_sheet_as_well(model: str) -> None:
    """Resizing is done in float32."""
    stage = Encode(EncodeConfig(model=model, reducer=SPEC, device="cpu", compute_dtype="bfloat16"))
    (outcome,) = stage.encode([colours(3, 8).tobytes()])
    assert outcome["shape"][0] == int(8 * 16 * 0.4)
