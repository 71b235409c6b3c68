"""Entries: the stored tokens of one video, from a row of Parquet to arrays, checked on the way.

Shapes: S tokens, D width, F frames, N patches, P joint image-text space.
"""

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import StoreError
from pipeline.schema import OPTIONAL
from pipeline.store.quantize import from_int8

if TYPE_CHECKING:  # torch loads when an entry is turned into tensors, not when it is read
    from torch import Tensor

DIGESTED = ("video_id", "features", "shape", "dtype", "frame", "anchor", "kind", "size", "position", "grid")
WIDTHS = {"frame": 2, "anchor": 4, "kind": 1, "size": 4, "position": 12}
"""Bytes per token of each column beside the features."""
EXTRAS = tuple(name for name, _ in OPTIONAL)
ORDER = {"rank": "<i2", "parent": "<i2", "link": "?", "weight": "<f4", "gain": "<f4"}
"""Types of the columns of `StoredOrder` that have one value per token."""
MOST_PATCHES = 2**31 - 1
"""Of a clip: an anchor is an int32."""


@dataclass(frozen=True, kw_only=True)
class StoredOrder:
    """The order of the tokens of a nested reducer; see `reducers.base.Order`."""

    rank: npt.NDArray[np.int16]
    """(S,)."""
    parent: npt.NDArray[np.int16]
    """(S,)."""
    link: npt.NDArray[np.bool_]
    """(S,)."""
    weight: npt.NDArray[np.float32]
    """(S,)."""
    gain: npt.NDArray[np.float32]
    """(S,)."""
    owner: npt.NDArray[np.int16]
    """(F * N,) place of the token that holds each patch, -1 if dropped."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The stored tokens of one video, checked."""

    video_id: str
    features: npt.NDArray[np.float16]
    """(S, D), before the projector; int8 rows times their scale where they are stored so."""
    frame: npt.NDArray[np.int16]
    """(S,) frame of the clip, -1 where a token stands for several."""
    anchor: npt.NDArray[np.int32]
    """(S,) frame * N + patch, or -1."""
    kind: npt.NDArray[np.uint8]
    """(S,) see `reducers.base`."""
    size: npt.NDArray[np.float32]
    """(S,) how many patches each stands for."""
    position: npt.NDArray[np.float32]
    """(S, 3) frame, row, column."""
    grid: tuple[int, int, int]
    """Frames, rows, columns before the reduction."""
    timestamps_s: tuple[float, ...]
    source_sha256: str
    payload_sha256: str
    order: StoredOrder | None = None
    """What cutting to a smaller budget needs; None if the reducer is not nested."""
    clip_space: npt.NDArray[np.float16] | None = None
    """(S, P) in the joint image-text space, 0 for CLS; None if not asked for while encoding."""

    def to_torch(self) -> "EntryTensors":
        """Return the tokens as torch tensors."""
        import torch

        def tensor(values: Any) -> "Tensor":
            return torch.from_numpy(np.array(values))

        return EntryTensors(
            features=tensor(self.features),
            positions=tensor(self.position),
            timestamps=tensor(np.asarray(self.timestamps_s, np.float32)),
            sizes=tensor(self.size),
            frames=tensor(self.frame),
            anchors=tensor(self.anchor),
            kinds=tensor(self.kind),
        )


@dataclass(frozen=True, kw_only=True)
class EntryTensors:
    """The tokens of an entry as torch tensors on the CPU, copies that may be changed."""

    features: "Tensor"
    """(S, D) float16, before the projector."""
    positions: "Tensor"
    """(S, 3) float32: frame, row, column of each token, mean over the patches behind it; -1 for CLS."""
    timestamps: "Tensor"
    """(F,) float32: seconds of each frame in the video."""
    sizes: "Tensor"
    """(S,) float32: patches that each token stands for; 0 for CLS."""
    frames: "Tensor"
    """(S,) int16: frame of each token, -1 for a token of the whole clip."""
    anchors: "Tensor"
    """(S,) int32: frame * N + patch that each token stands for, -1 if none."""
    kinds: "Tensor"
    """(S,) uint8, see `reducers.base`."""


def payload_digest(row: Mapping[str, Any]) -> str:
    """Return SHA-256 over an entry's columns, each with its length in front; optional ones with their name as well."""
    digest = hashlib.sha256()
    for name in (*DIGESTED, *(name for name in EXTRAS if row.get(name) is not None)):
        if name in EXTRAS:
            digest.update(name.encode())
        value = row[name]
        if isinstance(value, list):
            value = struct.pack(f"<{len(value)}q", *value)
        content = value.encode() if isinstance(value, str) else value
        digest.update(struct.pack("<q", len(content)))
        digest.update(content)
    times = row["timestamps_s"] or []
    digest.update(struct.pack(f"<q{len(times)}f", len(times), *times))
    return digest.hexdigest()


def entry_of(row: Mapping[str, Any], where: str) -> Entry:
    """Return an entry from a row of `schema.ENTRY`. Raises StoreError unless lengths, shape and dtype agree."""
    shape, grid = row["shape"], row["grid"]
    if row["dtype"] not in ("float16", "int8"):
        raise StoreError(f"{where}: expected dtype float16 or int8, got {row['dtype']!r}")
    if len(shape) != 2 or len(grid) != 3 or min(*shape, *grid) < 0:
        raise StoreError(f"{where}: expected shape [S, D] and grid [F, gh, gw], got {shape} and {grid}")
    if grid[0] * grid[1] * grid[2] > MOST_PATCHES:
        raise StoreError(f"{where}: expected at most {MOST_PATCHES} patches, got a grid of {grid}")
    _check_lengths(row, where)
    return Entry(
        video_id=row["video_id"],
        features=_features(row),
        frame=np.frombuffer(row["frame"], "<i2"),
        anchor=np.frombuffer(row["anchor"], "<i4"),
        kind=np.frombuffer(row["kind"], np.uint8),
        size=np.frombuffer(row["size"], "<f4"),
        position=np.frombuffer(row["position"], "<f4").reshape(-1, 3),
        grid=(grid[0], grid[1], grid[2]),
        timestamps_s=tuple(row["timestamps_s"]),
        source_sha256=row["source_sha256"],
        payload_sha256=row["payload_sha256"],
        order=_order(row),
        clip_space=_clip_space(row),
    )


def _check_lengths(row: Mapping[str, Any], where: str) -> None:
    """Raise StoreError unless every column has the bytes that shape, grid and dtype ask for."""
    tokens, width = row["shape"]
    expected = {"features": tokens * width * (1 if row["dtype"] == "int8" else 2)}
    expected |= {name: tokens * each for name, each in WIDTHS.items()}
    if row["dtype"] == "int8":
        expected["scale"] = 4 * tokens
    if row.get("rank") is not None:
        expected |= {name: tokens * np.dtype(kind).itemsize for name, kind in ORDER.items()}
        expected["owner"] = 2 * row["grid"][0] * row["grid"][1] * row["grid"][2]
    if row.get("clip_space") is not None:
        expected["clip_scale"] = 4 * tokens
        expected["clip_space"] = len(row["clip_space"]) // max(tokens, 1) * tokens
    for name, count in expected.items():
        found = row.get(name)
        if found is None or len(found) != count:
            raise StoreError(f"{where}: expected {count} bytes of {name}, got {'none' if found is None else len(found)}")


def _features(row: Mapping[str, Any]) -> npt.NDArray[np.float16]:
    """Return features (S, D)."""
    if row["dtype"] == "int8":
        return from_int8(row["features"], row["scale"]).reshape(row["shape"])
    features = np.frombuffer(row["features"], "<f2").reshape(row["shape"])
    return features if features.flags.aligned else features.copy()


def _order(row: Mapping[str, Any]) -> StoredOrder | None:
    if row.get("rank") is None:
        return None
    columns = {name: np.frombuffer(row[name], kind) for name, kind in ORDER.items()}
    return StoredOrder(**columns, owner=np.frombuffer(row["owner"], "<i2"))


def _clip_space(row: Mapping[str, Any]) -> npt.NDArray[np.float16] | None:
    return None if row.get("clip_space") is None else from_int8(row["clip_space"], row["clip_scale"])
