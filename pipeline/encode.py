"""The encode stage: clips in, reduced visual tokens out. The tower and one reducer, batched, on a GPU or without one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from pipeline.columns import columns, failure
from pipeline.decode import DecodeConfig, decode_spec
from pipeline.device import check_device, check_dtype, device_here, dtype_on
from pipeline.errors import ConfigError, PipelineError, check_at_least_one
from pipeline.schema import ENCODED, SCHEMA_VERSION

if TYPE_CHECKING:  # torch and transformers load when a stage is built, not when a flag is parsed
    import torch

    from pipeline.checkpoint import Checkpoint
    from reducers.base import Reducer, VisualTokens


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """Which tower looks at the clips, and what is kept of what it sees."""

    model: str
    """Directory or hub id of a Video-LLaVA checkpoint (safetensors)."""
    revision: str | None = None
    """Hub revision; pin it."""
    reducer: str = "prumerge+"
    """A reducer with its parameters, e.g. "prumerge+(ratio=0.125)"; `framefold reducers` lists them."""
    dtype: Literal["float16", "int8"] = "float16"
    """What tokens are stored in; int8 has a scale per token and takes half the bytes."""
    clip_space: bool = False
    """Store each token in the joint image-text space too, for answering with trim or with nest's question pass."""
    text_tower: str | None = None
    """Directory of the CLIP pair's text side and visual projection; default: text_tower inside the model's directory."""
    compute_dtype: str = "auto"
    """float32, bfloat16 or float16; auto is float16 on a GPU and float32 without one. Part of the fingerprint."""
    device: str = "auto"
    """auto is the first GPU or else the CPU; on Ray, a GPU if --gpus-per-encoder asks for one and else the CPU."""
    batch_clips: int = 8
    """Clips that go through the tower together."""

    def __post_init__(self) -> None:
        check_dtype("compute_dtype", self.compute_dtype)
        check_device(self.device)
        check_at_least_one(self, "batch_clips")
        if self.clip_space and self.reducer.startswith("tome"):
            raise ConfigError("clip_space needs patches as the tower gives them: tome merges them inside it")

    def on(self, device: str) -> "EncodeConfig":
        """Return the config for a device, dtype decided. A driver without a GPU calls it for workers that have one."""
        return replace(self, device=device, compute_dtype=dtype_on(device, self.compute_dtype, gpu="float16"))

    def here(self) -> "EncodeConfig":
        """Return the config for this machine, device and dtype decided."""
        return self.on(device_here(self.device))


def parse_reducer(spec: str) -> "Reducer":
    """Return the reducer of a spec string that can run while encoding. Raises ConfigError."""
    from reducers.base import ReducerSpecError
    from reducers.registry import parse

    try:
        reducer = parse(spec)
    except ReducerSpecError as error:
        raise ConfigError(str(error)) from error
    if reducer.needs_text:
        raise ConfigError(
            f"{reducer.name} reads the question, which is not known while encoding: encode with none or nest, "
            f"and give {reducer.name} to framefold answer"
        )
    return reducer


def check_reducer(spec: str, frames: int, checkpoint: "Checkpoint") -> None:
    """Raise ConfigError if a reducer cannot work on clips of this tower, before any video is read: it is tried on zeros."""
    import torch

    from reducers.base import ReducerError, VisualTokens

    reducer, shape = parse_reducer(spec), checkpoint.tower_shape()
    if reducer.modifies_tower:
        return
    if any(need.kind == "received" for need in reducer.needs):
        raise ConfigError(f"{spec} ranks by attention received, for towers without a CLS token: this one has it, use score=cls")
    patches, width = shape.grid[0] * shape.grid[1], shape.width
    captures = {}
    for need in reducer.needs:
        widths = {"concat": width, "mean": width // shape.heads}
        captures[need] = torch.zeros(frames, patches, *([widths[need.heads]] if need.kind == "keys" else []))
    rows = {"features": torch.zeros(frames, patches, width), "cls": torch.zeros(frames, width)}
    try:
        reducer.reduce(VisualTokens(**rows, grid=shape.grid, clip_ptr=torch.tensor([0, frames]), captures=captures))
    except ReducerError as error:
        raise ConfigError(f"{spec} cannot work on {frames} frames of {patches} patches: {error}") from error


def encode_spec(config: EncodeConfig, decode: DecodeConfig, checkpoint: "Checkpoint") -> dict[str, Any]:
    """Return all that stored tokens depend on and nothing else: no path, no device, no batch size."""
    from reducers.base import describe

    spec = {
        "kind": "encode",
        "schema_version": SCHEMA_VERSION,
        **checkpoint.spec(),
        **decode_spec(decode),
        "compute_dtype": config.here().compute_dtype,
        "dtype": config.dtype,
        "reducer": describe(parse_reducer(config.reducer)),
    }
    if config.clip_space:
        from pipeline.joint import JointSpace

        space = JointSpace.open(checkpoint, config.text_tower)
        spec["clip_space"] = {"projection_sha256": space.visual_digest(), "dtype": "int8"}
    return spec


class Encode:
    """Stage, GPU or CPU. Takes rows of `schema.DECODED`, returns rows of `schema.ENCODED`, same order."""

    def __init__(self, config: EncodeConfig) -> None:
        from pipeline.checkpoint import Checkpoint
        from pipeline.joint import JointSpace
        from pipeline.vision import Tower

        self.config = config.here()
        self.reducer = parse_reducer(self.config.reducer)
        checkpoint = Checkpoint.open(self.config.model, self.config.revision)
        self.tower = Tower(checkpoint, device=self.config.device, dtype=self.config.compute_dtype)
        wanted = self.config.clip_space
        self.space = JointSpace.open(checkpoint, self.config.text_tower) if wanted else None

    def __call__(self, clips: pa.Table) -> pa.Table:
        """Return the clips with tokens in place of frames. A clip with a failure passes through."""
        rows = clips.to_pylist()
        good = [at for at, row in enumerate(rows) if row["error_class"] is None]
        for start in range(0, len(good), self.config.batch_clips):
            batch = good[start : start + self.config.batch_clips]
            for at, outcome in zip(batch, self.encode([rows[at]["frames"] for at in batch]), strict=True):
                rows[at] |= outcome
        return pa.Table.from_pylist([{name: row.get(name) for name in ENCODED.names} for row in rows], schema=ENCODED)

    def encode(self, clips: Sequence[bytes]) -> list[dict[str, Any]]:
        """Return the token columns of some clips, each uint8 F*S*S*3; or a failure where a value is not finite."""
        import torch

        from reducers.tome import ToMe

        frames = [self._frames(clip) for clip in clips]
        ends = torch.tensor([0, *(len(one) for one in frames)]).cumsum(0)
        if isinstance(self.reducer, ToMe):
            merged = self.tower.merged(torch.cat(frames), self.reducer, ends)
            grids = [(len(one), *self.tower.grid) for one in frames]
            return [columns(merged, number, grid, dtype=self.config.dtype) for number, grid in enumerate(grids)]
        seen = self.tower(torch.cat(frames), self.reducer.needs, ends)
        bad = _not_finite(seen)
        kept = [number for number in range(len(clips)) if number not in bad]
        found: list[dict[str, Any]] = [failure("the tower gave values that are not finite") for _ in clips]
        if kept:
            reduced = self._reduced(seen if not bad else _clips(seen, kept))
            for number, outcome in zip(kept, reduced, strict=True):
                found[number] = outcome
        return found

    def _reduced(self, seen: "VisualTokens") -> list[dict[str, Any]]:
        """Return the token columns of each clip of a batch."""
        reduced, bounds = self.reducer.reduce(seen), seen.clip_ptr.tolist()
        found = []
        for number, (start, end) in enumerate(pairwise(bounds)):
            rows = seen.features[start:end].flatten(0, 1)
            vectors = None if self.space is None else self.space.project(self.tower.model, rows)
            grid = (end - start, *seen.grid)
            found.append(columns(reduced, number, grid, dtype=self.config.dtype, before=start, clip_space=vectors))
        return found

    def _frames(self, clip: bytes) -> "torch.Tensor":
        """Return frames (F, S, S, 3). Raises PipelineError if the decode stage cut them to another side."""
        import torch

        side = self.tower.side_px
        if len(clip) == 0 or len(clip) % (side * side * 3):
            raise PipelineError(f"expected frames of {side} x {side} px from the decode stage, got {len(clip)} bytes")
        pixels = np.frombuffer(clip, dtype=np.uint8).reshape(-1, side, side, 3)
        return torch.from_numpy(pixels.copy())


def _not_finite(seen: "VisualTokens") -> set[int]:
    """Return the clips with a feature or a capture that is not finite."""
    import torch

    from reducers.layout import frames_in_clip

    values = [seen.features, *seen.captures.values(), *([] if seen.cls is None else [seen.cls])]
    good_F = torch.stack([value.flatten(1).isfinite().all(1) for value in values]).all(0)
    clip_F, _ = frames_in_clip(seen.clip_ptr)
    return set(clip_F[~good_F].tolist())


def _clips(seen: "VisualTokens", kept: Sequence[int]) -> "VisualTokens":
    """Return some clips of a batch."""
    import torch

    bounds = seen.clip_ptr.tolist()
    frames = torch.cat([torch.arange(bounds[at], bounds[at + 1]) for at in kept]).to(seen.features.device)
    lengths = torch.tensor([0, *(bounds[at + 1] - bounds[at] for at in kept)])
    return replace(
        seen,
        features=seen.features[frames],
        cls=None if seen.cls is None else seen.cls[frames],
        clip_ptr=lengths.cumsum(0).to(seen.clip_ptr.device),
        captures={need: value[frames] for need, value in seen.captures.items()},
    )
