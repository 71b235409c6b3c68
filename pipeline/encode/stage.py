"""The encode stage: clips in, reduced visual tokens out. The tower and one reducer, batched, on a GPU or without one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from pipeline.decode.config import DecodeConfig, decode_spec
from pipeline.encode.timer import Watch
from pipeline.errors import ConfigError, check_at_least_one
from pipeline.models.device import check_device, check_dtype, device_here, dtype_on
from pipeline.schema import ENCODED, SCHEMA_VERSION
from pipeline.store.columns import columns, failure, hosted

if TYPE_CHECKING:  # torch and transformers load when a stage is built, not when a flag is parsed
    import torch

    from pipeline.models.checkpoint import Checkpoint, TowerShape
    from reducers.base import ReducedTokens, Reducer, VisualTokens
    from reducers.trial import Geometry

    _Looked = tuple[Sequence[int], VisualTokens | ReducedTokens]
    """Frames of each clip of a batch, and what the tower saw of them, or what merging inside it left."""


TOGETHER = (8, 32)
"""Clips that go through the tower together without a GPU and on one. What `nest` launches there does not grow with them."""
OVERLAPPING = 4
"""Batches that a stage on a GPU is best given in one call: it overlaps them, see `pipeline.encode.stream_overlap`."""


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """Model, reducer, and how tokens are stored."""

    model: str
    """Directory or hub id of a Video-LLaVA checkpoint (safetensors)."""
    revision: str | None = None
    """Hub revision; pin it."""
    reducer: str = "prumerge+"
    """A reducer with its parameters, e.g. "prumerge+(ratio=0.125)"; `framefold reducers` lists them."""
    dtype: Literal["float16", "int8"] = "float16"
    """Type of the stored tokens; int8 has a scale per token and takes half the bytes."""
    clip_space: bool = False
    """Also store each token in the joint image-text space, for trim or --by-question."""
    text_tower: str | None = None
    """Directory of the CLIP pair's text side and visual projection; default: text_tower inside the model's directory."""
    compute_dtype: str = "auto"
    """float32, bfloat16 or float16; auto is float16 on a GPU and float32 without one. Part of the fingerprint."""
    device: str = "auto"
    """auto is the first GPU or else the CPU; on Ray, a GPU if --gpus-per-encoder asks for one and else the CPU."""
    batch_clips: int | None = None
    """Clips per batch of the tower; default: 8, on a GPU 32. Larger batches need more memory."""

    def __post_init__(self) -> None:
        check_dtype("compute_dtype", self.compute_dtype)
        check_device(self.device)
        if self.batch_clips is not None:
            check_at_least_one(self, "batch_clips")
        if self.clip_space:
            _check_patches(self.reducer)

    @property
    def clips_together(self) -> int:
        """Return how many clips go through the tower together, once the device is decided."""
        return self.batch_clips or TOGETHER[self.device.startswith("cuda")]

    @property
    def clips_at_once(self) -> int:
        """Return how many clips to give to the stage in one call."""
        return self.clips_together * (OVERLAPPING if self.device.startswith("cuda") else 1)

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


def _check_patches(spec: str) -> None:
    """Raise ConfigError if a reducer merges patches before they can be taken to the joint image-text space."""
    reducer = parse_reducer(spec)
    if reducer.modifies_tower:
        clash = f"--clip-space cannot be combined with --reducer {reducer.name}"
        raise ConfigError(f"{clash}, which merges patches inside the tower")


def check_reducer(spec: str, frames: int, checkpoint: "Checkpoint") -> None:
    """Raise ConfigError if a reducer cannot work on clips of this tower, before any video is read: it is tried on zeros."""
    from pipeline.models.tower import check_captures
    from reducers.base import ReducerError
    from reducers.trial import try_on_zeros

    reducer, shape = parse_reducer(spec), checkpoint.tower_shape()
    check_captures(reducer.needs, shape.blocks, checkpoint.layer)
    if any(need.kind == "received" for need in reducer.needs):
        raise ConfigError(f"{spec} ranks by attention received, for towers without a CLS token: this one has it, use score=cls")
    try:
        try_on_zeros(reducer, _geometry(frames, shape))
    except ReducerError as error:
        patches = shape.grid[0] * shape.grid[1]
        raise ConfigError(f"{spec} cannot work on {frames} frames of {patches} patches: {error}") from error


def reduced_zeros(reducer: "Reducer", frames: int, shape: "TowerShape") -> "ReducedTokens":
    """Return what a reducer leaves of one clip of `frames` frames in which every value is 0. Raises ReducerError."""
    from reducers.trial import guarded, zeros

    return guarded(reducer, zeros(reducer, _geometry(frames, shape)))


def _geometry(frames: int, shape: "TowerShape") -> "Geometry":
    from reducers.trial import Geometry

    return Geometry(frames=frames, grid=shape.grid, width=shape.width, heads=shape.heads)


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
        from pipeline.models.clip_space import JointSpace

        space = JointSpace.open(checkpoint, config.text_tower)
        spec["clip_space"] = {"projection_sha256": space.visual_digest(), "dtype": "int8"}
    return spec


class Encode:
    """Stage, GPU or CPU. Takes rows of `schema.DECODED`, returns rows of `schema.ENCODED`, same order."""

    def __init__(self, config: EncodeConfig) -> None:
        from pipeline.encode.stream_overlap import Overlap
        from pipeline.models.checkpoint import Checkpoint
        from pipeline.models.clip_space import JointSpace
        from pipeline.models.tower import Tower

        self.config = config.here()
        self.reducer = parse_reducer(self.config.reducer)
        checkpoint = Checkpoint.open(self.config.model, self.config.revision)
        self.tower = Tower(checkpoint, device=self.config.device, dtype=self.config.compute_dtype)
        wanted = self.config.clip_space
        self.space = JointSpace.open(checkpoint, self.config.text_tower) if wanted else None
        self.overlap = Overlap(self.tower.device)
        self.watch = Watch()

    def __call__(self, clips: pa.Table) -> pa.Table:
        """Return the clips with tokens in place of frames. A clip with a failure passes through."""
        rows = clips.to_pylist()
        good = [at for at, row in enumerate(rows) if row["error_class"] is None]
        each = self.config.clips_together
        batches = [good[start : start + each] for start in range(0, len(good), each)]
        frames = ([rows[at]["frames"] for at in batch] for batch in batches)
        for batch, outcomes in zip(batches, self.overlap.run(self._look, self._finish, frames), strict=True):
            for at, outcome in zip(batch, outcomes, strict=True):
                rows[at] |= outcome
        return pa.Table.from_pylist([{name: row.get(name) for name in ENCODED.names} for row in rows], schema=ENCODED)

    def encode(self, clips: Sequence[bytes]) -> list[dict[str, Any]]:
        """Return the token columns of some clips, each uint8 F*S*S*3; or a failure where a value is not finite."""
        return self._finish(self._look(clips))

    def _look(self, clips: Sequence[bytes]) -> "_Looked":
        """Run the tower over some clips. A GPU has only begun when this returns."""
        from pipeline.encode.batching import ends_of, frames_of

        frames, lengths = frames_of(clips, self.tower.side_px, locked=self.tower.device.type == "cuda")
        if self.reducer.modifies_tower:
            with self.watch("tower"):
                return lengths, self.tower.merged(frames, self.reducer, ends_of(lengths))
        with self.watch("tower"):
            return lengths, self.tower(frames, self.reducer.needs, ends_of(lengths))

    def _finish(self, looked: "_Looked") -> list[dict[str, Any]]:
        """Return the token columns of each clip, or the failure of one with a value that is not finite."""
        from pipeline.encode.batching import not_finite, some_clips
        from reducers.base import ReducedTokens

        lengths, seen = looked
        if isinstance(seen, ReducedTokens):
            return self._columns(seen, lengths)
        with self.watch("tower"):
            bad = not_finite(seen)  # waits for what the tower has begun
        kept = [number for number in range(len(lengths)) if number not in bad]
        found: list[dict[str, Any]] = [failure("the tower gave values that are not finite") for _ in lengths]
        if kept:
            seen = some_clips(seen, kept) if bad else seen
            with self.watch("reduce"):
                outcomes = self._reduced(seen, [lengths[number] for number in kept])
            for number, outcome in zip(kept, outcomes, strict=True):
                found[number] = outcome
        return found

    def _reduced(self, seen: "VisualTokens", lengths: Sequence[int]) -> list[dict[str, Any]]:
        """Return the token columns of clips of so many frames.

        What a plug-in returns is checked. Where it fails on several clips, each is reduced by itself; one that fails is a row.
        """
        from pipeline.encode.batching import in_joint_space, some_clips
        from reducers.base import ReducerError
        from reducers.plugins import is_plugin
        from reducers.trial import guarded

        foreign = is_plugin(type(self.reducer))
        try:
            reduced = guarded(self.reducer, seen) if foreign else self.reducer.reduce(seen)
        except ReducerError as error:
            if not foreign:
                raise
            if len(lengths) == 1:
                return [failure(str(error))]
            return [self._reduced(some_clips(seen, [at]), [frames])[0] for at, frames in enumerate(lengths)]
        vectors = None if self.space is None else in_joint_space(self.space, self.tower.model, seen, reduced)
        return self._columns(reduced, lengths, vectors)

    def _columns(
        self, reduced: "ReducedTokens", lengths: Sequence[int], vectors: "Sequence[torch.Tensor] | None" = None
    ) -> list[dict[str, Any]]:
        """Return the token columns of each clip of a batch, given its frames and the vectors of its tokens."""
        found, before, reduced = [], 0, hosted(reduced)
        for number, frames in enumerate(lengths):
            grid, shown = (frames, *self.tower.grid), None if vectors is None else vectors[number]
            found.append(columns(reduced, number, grid, dtype=self.config.dtype, before=before, clip_space=shown))
            before += frames
        return found
