"""Compositions through the encode stage: the tower takes what both parts read, the store gets exactly the budget."""

import numpy as np
import pyarrow as pa
import pytest

from pipeline.decode.config import DecodeConfig
from pipeline.encode.stage import Encode, EncodeConfig, check_reducer, encode_spec
from pipeline.fingerprint import fingerprint
from pipeline.models.checkpoint import Checkpoint
from pipeline.schema import DECODED
from reducers.compose.selectors import FIRST
from reducers.compose.spenders import SECOND
from tests.models import tiny_checkpoint
from tests.tables import corpus

SPECS = [f"{first}(keep=40)|{second}" for first in FIRST for second in SECOND]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_checkpoint(tmp_path_factory.mktemp("composed") / "tiny")


def clips(count: int) -> pa.Table:
    """Clips in which the second half of the frames repeats the fourth."""
    random = np.random.default_rng(7)
    rows = corpus(*"abcdefgh"[:count]).to_pylist()
    for row in rows:
        frames = random.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
        frames[4:] = frames[3]
        row["frames"] = frames.tobytes()
    return pa.Table.from_pylist([{name: row.get(name) for name in DECODED.names} for row in rows], schema=DECODED)


@pytest.mark.parametrize("spec", SPECS)
def test_every_clip_has_exactly_its_budget_alone_or_in_a_batch(model: str, spec: str) -> None:
    """40 tokens, 8 of them CLS rows, and the same anchors either way."""
    stage = Encode(EncodeConfig(model=model, reducer=spec, device="cpu"))
    table = clips(3)
    together = stage(table).to_pylist()
    alone = [row for at in range(3) for row in stage(table.slice(at, 1)).to_pylist()]
    for one, other in zip(together, alone, strict=True):
        assert one["error_class"] is None
        assert one["shape"] == [40, 32]
        assert one["anchor"] == other["anchor"]
        assert np.frombuffer(one["anchor"], "<i4").tolist().count(-1) == 8


@pytest.mark.parametrize("spec", SPECS)
def test_a_composition_is_tried_on_zeros_before_a_video_is_read(model: str, spec: str) -> None:
    """On any number of frames."""
    for frames in (1, 2, 8):
        check_reducer(spec, frames, Checkpoint.open(model))


def test_each_parameter_of_either_part_changes_the_fingerprint_and_spelling_does_not(model: str) -> None:
    """So that no store mixes them."""
    specs = [
        "evs(keep=40)|visionzip",
        "evs(keep=41)|visionzip",
        "evs(keep=40, widen=3)|visionzip",
        "evs(keep=40, absorb=false)|visionzip",
        "evs(keep=40)|visionzip(merge=mean)",
        "evs(keep=40)|visionzip(dominant=4, contextual=1)",
        "evs(keep=40)|prumerge",
        "alloc(keep=40)|visionzip",
        "evs(keep=40)",
    ]
    checkpoint = Checkpoint.open(model)

    def of(spec: str) -> str:
        return fingerprint(encode_spec(EncodeConfig(model=model, reducer=spec, device="cpu"), DecodeConfig(), checkpoint))

    assert len({of(spec) for spec in specs}) == len(specs)
    assert of("evs(keep=40) + visionzip()") == of("evs( keep=40 )|visionzip(dominant=5, contextual=1)")
