"""From reduced tokens to the columns that are stored. The way back is in `shards`, `entries` and `token_selection`."""

from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.store.quantize import to_int8

if TYPE_CHECKING:  # torch loads when a stage is built, not when a flag is parsed
    from torch import Tensor

    from reducers.base import ReducedTokens

PLAIN = {"frame": "<i2", "anchor": "<i4", "kind": "u1", "size": "<f4", "position": "<f4"}
ORDER = {"rank": "<i2", "parent": "<i2", "link": "u1", "weight": "<f4", "gain": "<f4"}


T = TypeVar("T")


def hosted(reduced: "ReducedTokens") -> "ReducedTokens":
    """Return the tokens of a batch in host memory, features in float16: one copy per column, however many clips."""
    import torch

    return _on_host(replace(reduced, features=reduced.features.to(torch.float16)))


def _on_host(value: T) -> T:
    """Return a tensor, or a dataclass of some, in host memory; anything else as it is."""
    if is_dataclass(value):
        return replace(value, **{field.name: _on_host(getattr(value, field.name)) for field in fields(value)})  # type: ignore[type-var]
    return value.cpu() if hasattr(value, "cpu") else value


def columns(
    reduced: "ReducedTokens",
    number: int,
    grid: tuple[int, int, int],
    *,
    dtype: str = "float16",
    before: int = 0,
    clip_space: "Tensor | None" = None,
) -> dict[str, Any]:
    """Return the stored columns of one clip of a batch; a failure if float16 cannot hold its features.

    Args:
        reduced: tokens of all clips, as `hosted` gives them.
        number: which clip.
        grid: its frames, rows and columns before the reduction.
        dtype: float16 or int8.
        before: frames of the clips before it.
        clip_space: (S, P) its tokens in the joint image-text space, float32.
    """
    span = reduced.clip(number)
    features = reduced.features[span]
    if not bool(features.isfinite().all()):
        return failure("features do not fit float16")
    found: dict[str, Any] = {name: _bytes(getattr(reduced, name)[span], kind) for name, kind in PLAIN.items()}
    found |= {"shape": list(features.shape), "dtype": dtype, "grid": list(grid)}
    found |= _features(features, dtype) | _order(reduced, number, grid, before)
    if clip_space is None:
        return found
    values, scale = to_int8(clip_space.numpy())
    return found | {"clip_space": values, "clip_scale": scale}


def failure(detail: str) -> dict[str, Any]:
    """Return the columns of a clip that could not be encoded."""
    return {"error_class": "ENCODE_FAILED", "error": detail}


def _bytes(values: "Tensor", kind: str) -> bytes:
    return bytes(values.numpy().astype(kind).tobytes())


def _features(features: "Tensor", dtype: str) -> dict[str, Any]:
    if dtype == "float16":
        return {"features": features.numpy().astype("<f2", copy=False).tobytes()}
    values, scale = to_int8(features.numpy())
    return {"features": values, "scale": scale}


def _order(reduced: "ReducedTokens", number: int, grid: tuple[int, int, int], before: int) -> dict[str, Any]:
    """Return what cutting to a smaller budget needs, for reducers that are nested."""
    if reduced.order is None or reduced.owner is None:
        return {}
    span, patches = reduced.clip(number), grid[1] * grid[2]
    owner = reduced.owner[before * patches : (before + grid[0]) * patches]
    held = {name: _bytes(getattr(reduced.order, name)[span], kind) for name, kind in ORDER.items()}
    return {**held, "owner": _bytes(owner, "<i2")}
