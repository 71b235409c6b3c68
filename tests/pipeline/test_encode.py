"""Clips to stored columns: right bytes, right failures, and a fingerprint that misses nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.decode.config import DecodeConfig
from pipeline.decode.stage import Decode
from pipeline.encode.batching import not_finite, some_clips
from pipeline.encode.local_runner import encode_units
from pipeline.encode.stage import Encode, EncodeConfig, encode_spec
from pipeline.errors import ConfigError, PipelineError
from pipeline.fingerprint import fingerprint
from pipeline.models.checkpoint import Checkpoint
from pipeline.schema import DECODED, ENCODED
from pipeline.store.token_store import Commit, TokenStore
from reducers.base import VisualTokens
from reducers.ops.clip_budget import ATTENTION
from tests.models import tiny_checkpoint
from tests.tables import corpus

VIDEOS = Path(__file__).parents[1] / "videos"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_checkpoint(tmp_path_factory.mktemp("encode") / "tiny")


def clips(count: int, seed: int = 0, frames: int = 8) -> pa.Table:
    random = np.random.default_rng(seed)
    pixels = [random.integers(0, 256, frames * 32 * 32 * 3, dtype=np.uint8).tobytes() for _ in range(count)]
    rows = [{**row, "frames": some} for row, some in zip(corpus(*"abcdefgh"[:count]).to_pylist(), pixels, strict=True)]
    return pa.Table.from_pylist([{name: row.get(name) for name in DECODED.names} for row in rows], schema=DECODED)


def test_unreduced_tokens_are_the_rows_of_the_tower_with_cls_in_front(model: str) -> None:
    """`none` stores exactly what Video-LLaVA would look at, in half precision."""
    stage = Encode(EncodeConfig(model=model, reducer="none", device="cpu"))
    table = clips(2)
    encoded = stage(table)
    assert encoded.schema == ENCODED
    for at, row in enumerate(encoded.to_pylist()):
        assert row["shape"] == [8 * 17, 32]
        pixels = np.frombuffer(table["frames"][at].as_py(), np.uint8).reshape(8, 32, 32, 3)
        seen = stage.tower(torch.from_numpy(pixels.copy()), frozenset(), torch.tensor([0, 8]))
        rows = torch.cat([seen.cls[:, None], seen.features], 1).flatten(0, 1).half()
        assert np.frombuffer(row["features"], "<f2").tobytes() == rows.numpy().tobytes()
        assert row["grid"] == [8, 4, 4]


@pytest.mark.parametrize("spec", ["none", "spatial(k=4)", "prumerge", "prumerge+", "sequential(k=3)"])
def test_a_clip_does_not_depend_on_who_shares_its_batch(model: str, spec: str) -> None:
    """One by one or together: the same tokens, up to the rounding of a matrix product."""
    stage = Encode(EncodeConfig(model=model, reducer=spec, device="cpu"))
    table = clips(5)
    together = stage(table).to_pylist()
    alone = [row for at in range(5) for row in stage(table.slice(at, 1)).to_pylist()]
    for one, other in zip(together, alone, strict=True):
        assert one["shape"] == other["shape"]
        assert one["anchor"] == other["anchor"]
        a, b = (np.frombuffer(row["features"], "<f2").astype(float) for row in (one, other))
        np.testing.assert_allclose(a, b, atol=4e-3)


def test_failures_pass_through_and_a_bad_clip_spares_the_others(model: str) -> None:
    """A tower that overflows is a class of failure of that clip; what failed before keeps its own."""
    stage = Encode(EncodeConfig(model=model, reducer="prumerge+", device="cpu"))
    rows = clips(3).to_pylist()
    rows[0] |= {"frames": None, "error_class": "CORRUPT", "error": "why"}
    table = pa.Table.from_pylist(rows, schema=DECODED)
    clean = stage(table).to_pylist()
    marked = np.frombuffer(rows[1]["frames"], np.uint8).reshape(8, 32, 32, 3)[0]

    def poison(_module: Any, given: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        shown = ((torch.from_numpy(marked.copy()).float() / 255 - stage.tower._mean) / stage.tower._std).permute(2, 0, 1)
        hit = (given[0] - shown).abs().flatten(1).amax(1) < 1e-5
        return torch.where(hit[:, None, None], torch.inf, output)

    hook = stage.tower.model.embeddings.register_forward_hook(poison)
    poisoned = stage(table).to_pylist()
    hook.remove()
    assert [row["error_class"] for row in poisoned] == ["CORRUPT", "ENCODE_FAILED", None]
    assert poisoned[0] == clean[0]
    assert poisoned[2]["anchor"] == clean[2]["anchor"]
    assert poisoned[1]["features"] is None


def test_what_float16_cannot_hold_is_a_failure_not_an_infinity(model: str) -> None:
    """Features above 65504 are refused."""
    stage = Encode(EncodeConfig(model=model, reducer="spatial(k=4)", device="cpu"))
    stage.tower.model.encoder.layers[2].register_forward_hook(lambda _, __, out: out * 1e6)
    assert stage(clips(1))["error_class"].to_pylist() == ["ENCODE_FAILED"]


def test_frames_of_another_side_stop_the_job(model: str) -> None:
    """A wrong setting, not a bad video."""
    stage = Encode(EncodeConfig(model=model, reducer="none", device="cpu"))
    for frames in (bytes(1000), b""):
        row = {**clips(1).to_pylist()[0], "frames": frames}
        with pytest.raises(PipelineError, match="32 x 32"):
            stage(pa.Table.from_pylist([row], schema=DECODED))


@pytest.mark.parametrize("spec", ["nonsense", "prumerge+(ratio=0)", "spatial(k=x)", "spatial(q=1)"])
def test_wrong_reducers_are_refused_before_anything_is_read(model: str, spec: str) -> None:
    """One line that says what is known."""
    with pytest.raises(ConfigError) as caught:
        encode_spec(EncodeConfig(model=model, reducer=spec, device="cpu"), DecodeConfig(), Checkpoint.open(model))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"batch_clips": 0}, "batch_clips must be at least 1, got 0"),
        ({"compute_dtype": "int8"}, "got 'int8'"),
        ({"clip_space": True, "reducer": "tome(keep=8)"}, "--clip-space cannot be combined with --reducer tome"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any], said: str) -> None:
    """Before a model is looked for."""
    with pytest.raises(ConfigError, match=said):
        EncodeConfig(model="m", **wrong)
    assert EncodeConfig(model="m", batch_clips=1, clip_space=True).batch_clips == 1


def test_more_clips_go_through_a_gpu_together() -> None:
    """Unless the user says how many."""
    assert EncodeConfig(model="m").on("cpu").clips_together == EncodeConfig(model="m").on("cpu").clips_at_once == 8
    assert EncodeConfig(model="m").on("cuda").clips_together == 32
    assert EncodeConfig(model="m", batch_clips=3).on("cuda:1").clips_together == 3
    assert EncodeConfig(model="m", batch_clips=3).on("cuda:1").clips_at_once == 12


def test_auto_is_half_precision_on_a_gpu_and_full_without_one() -> None:
    """What was asked for by name stays."""
    assert EncodeConfig(model="m").on("cuda:1").compute_dtype == "float16"
    assert EncodeConfig(model="m").on("cpu").compute_dtype == "float32"
    assert EncodeConfig(model="m", compute_dtype="bfloat16").on("cuda").compute_dtype == "bfloat16"


def seen_by_hand() -> VisualTokens:
    """Three clips of 1, 2 and 3 frames; each number says which frame it is of."""
    frame = torch.arange(6.0)
    return VisualTokens(
        features=frame[:, None, None].expand(6, 4, 3).clone(),
        cls=frame[:, None].expand(6, 3).clone(),
        grid=(2, 2),
        clip_ptr=torch.tensor([0, 1, 3, 6]),
        captures={ATTENTION: frame[:, None].expand(6, 4).clone()},
    )


@pytest.mark.parametrize("where", ["features", "cls", "captures"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_clip_with_one_number_that_is_none_is_found(where: str, value: float) -> None:
    """Among patches, CLS rows and what was captured; the others of its batch are not touched."""
    seen = seen_by_hand()
    assert not_finite(seen) == set()
    rows = seen.captures[ATTENTION] if where == "captures" else getattr(seen, where)
    rows[2].view(-1)[-1] = value
    assert not_finite(seen) == {1}
    assert not_finite(replace(seen, cls=None)) == (set() if where == "cls" else {1})


def test_clips_that_are_left_keep_their_frames_and_lengths() -> None:
    """Whichever is taken out."""
    left = some_clips(seen_by_hand(), [0, 2])
    assert left.clip_ptr.tolist() == [0, 1, 4]
    assert left.cls is not None
    for rows in (left.features[:, 0, 0], left.cls[:, 0], left.captures[ATTENTION][:, 0]):
        assert rows.tolist() == [0.0, 3.0, 4.0, 5.0]
    assert some_clips(replace(seen_by_hand(), cls=None), [1]).clip_ptr.tolist() == [0, 2]


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "reducer": ({"reducer": "none"}, {}),
    "reducer parameter": ({"reducer": "spatial(k=5)"}, {}),
    "compute dtype": ({"compute_dtype": "bfloat16"}, {}),
    "revision": ({"revision": "abc"}, {}),
    "frames": ({}, {"frames": 4}),
    "policy": ({}, {"policy": "arange"}),
    "decoder": ({}, {"decoder": "decord"}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_field_that_changes_tokens_changes_the_fingerprint(model: str, name: str) -> None:
    """And each fingerprint is another."""
    encode, decode = CHANGES[name]
    base = EncodeConfig(model=model, reducer="spatial(k=4)", device="cpu")
    plain = encode_spec(base, DecodeConfig(), Checkpoint.open(model))
    changed_config = EncodeConfig(**{**vars(base), **encode})
    checkpoint = Checkpoint.open(model, encode.get("revision"))
    changed = encode_spec(changed_config, DecodeConfig(**decode), checkpoint)
    assert fingerprint(changed) != fingerprint(plain)


def test_the_tower_and_its_preprocessing_change_the_fingerprint(model: str, tmp_path: Path) -> None:
    """Other weights, another layer, another mean."""
    config = EncodeConfig(model=model, reducer="none", device="cpu")
    plain = fingerprint(encode_spec(config, DecodeConfig(), Checkpoint.open(model)))
    seen = {plain}
    for seed, layer, mean in ((1, -2, None), (0, -3, None), (0, -2, "[0.5, 0.5, 0.5]")):
        path = tiny_checkpoint(tmp_path / f"{seed}{layer}{mean is None}", seed, layer)
        if mean:
            (Path(path) / "preprocessor_config.json").write_text(f'{{"image_mean": {mean}}}')
        seen.add(fingerprint(encode_spec(config, DecodeConfig(), Checkpoint.open(path))))
    assert len(seen) == 4


def test_batch_size_device_and_path_do_not_change_the_fingerprint(model: str, tmp_path: Path) -> None:
    """Moving a checkpoint or a faster machine is no reason to encode again."""
    config = EncodeConfig(model=model, reducer="none", device="cpu")
    plain = encode_spec(config, DecodeConfig(), Checkpoint.open(model))
    other = EncodeConfig(model="elsewhere", reducer="none", device="cuda:1", compute_dtype="float32", batch_clips=3)
    assert encode_spec(other, DecodeConfig(deadline_s=3), Checkpoint.open(tiny_checkpoint(tmp_path / "copy"))) == plain


def test_real_videos_go_through_all_stages_in_this_process(model: str, tmp_path: Path) -> None:
    """Decode, encode, commit, read back; the broken one is a listed failure; a second run has nothing to do."""
    uris = {name: str(VIDEOS / name) for name in ("testsrc2.mp4", "av1_video.mkv", "sine_mono_s16.wav", "video_90.mov")}
    rows = [{"video_id": name, "uri": uri, "source_hint": "{}"} for name, uri in uris.items()]
    todo = pa.Table.from_pylist(rows, schema=corpus("x").schema)
    config, decode = EncodeConfig(model=model, reducer="spatial(k=4)", device="cpu"), DecodeConfig()
    commit = Commit(str(tmp_path), encode_spec(config, decode, Checkpoint.open(model)))
    stage = Encode(config)
    manifests = encode_units(
        todo, lambda: Decode(decode, stage.tower.side_px), stage, commit, decoders=2, videos_per_step=1, videos_per_unit=2
    )
    statuses = {row["video_id"]: row["status"] for table in manifests for row in table.to_pylist()}
    assert statuses == {**dict.fromkeys(uris, "committed"), "sine_mono_s16.wav": "failed"}
    store = TokenStore.open(str(tmp_path))
    assert store.missing(todo).num_rows == 0
    assert store.failures()["error_class"].to_pylist() == ["NO_VIDEO_STREAM"]
    assert store.read("av1_video.mkv").features.shape == (8 * 4, 32)
