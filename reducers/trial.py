"""Try a reducer on zeros, and check what it returns: a plug-in that breaks the interface is refused before a video is read.

Shapes as in `reducers.base`: V clips, F frames, N patches, D width, S tokens, P width of the joint image-text space.
"""

from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from reducers.base import MERGED, Capture, Order, ReducedTokens, Reducer, ReducerError, TextQuery, VisualTokens
from reducers.plugins import is_plugin, label, one_line

TYPES = {
    "ptr": torch.int64,
    "frame": torch.int16,
    "anchor": torch.int32,
    "kind": torch.uint8,
    "size": torch.float32,
    "position": torch.float32,
}
"""Type of each column of `ReducedTokens`; features keep the type of the input."""
ORDER_TYPES = {
    "rank": torch.int16,
    "parent": torch.int16,
    "link": torch.bool,
    "weight": torch.float32,
    "gain": torch.float32,
}
"""Type of each column of `Order`."""
JOINT_WIDTH = 16
"""P of the trial of a reducer that reads the question."""


class InterfaceError(ReducerError):
    """What a reducer returned is not what the interface of `reducers.base` asks for."""


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Clips of one tower."""

    frames: int
    """Frames per clip."""
    grid: tuple[int, int]
    """Rows and columns of patches."""
    width: int
    """D."""
    heads: int
    """Attention heads; they divide the width."""


def check_reducer(
    reducer: Reducer, *, frames: int = 8, grid: tuple[int, int] = (16, 16), width: int = 1024, heads: int = 16
) -> None:
    """Try a reducer on zeros of a tower's geometry, by default that of Video-LLaVA-7B, and check what it returns.

    Args:
        reducer: a configured method.
        frames: frames per clip.
        grid: rows and columns of patches.
        width: D, features per patch.
        heads: attention heads of the tower.

    Raises InterfaceError if the result breaks the interface, ReducerError if the method cannot work on such clips.
    """
    try_on_zeros(reducer, Geometry(frames=frames, grid=grid, width=width, heads=heads))


def try_on_zeros(reducer: Reducer, geometry: Geometry) -> None:
    """Reduce zeros and check the result; a plug-in gets two clips, so that one which ignores `clip_ptr` is found.

    A reducer that works inside the tower is not tried. Raises ReducerError.
    """
    if reducer.modifies_tower:
        return
    clips = 2 if is_plugin(type(reducer)) else 1
    text = TextQuery(embedding=torch.zeros(clips, JOINT_WIDTH)) if reducer.needs_text else None
    guarded(reducer, zeros(reducer, geometry, clips), text)


def guarded(reducer: Reducer, tokens: VisualTokens, text: TextQuery | None = None) -> ReducedTokens:
    """Return what a reducer makes of some clips, checked. Raises ReducerError; of a plug-in it names the distribution."""
    if not is_plugin(type(reducer)):
        reduced = reducer.reduce(tokens, text)
        check_reduced(tokens, reduced)
        return reduced
    whose = label(type(reducer))
    try:
        reduced = reducer.reduce(tokens, text)
        check_reduced(tokens, reduced)
        check_not_empty(reduced)
    except InterfaceError as error:
        raise InterfaceError(f"{whose} breaks the interface: {error}") from error
    except ReducerError as error:
        raise ReducerError(f"{whose}: {error}") from error
    except (Exception, SystemExit) as error:
        raise InterfaceError(f"{whose} raised {one_line(error)}") from error
    return reduced


def zeros(reducer: Reducer, geometry: Geometry, clips: int = 1) -> VisualTokens:
    """Return clips of zeros with every capture that a reducer needs. Raises ReducerError for a capture no tower takes."""
    frames, patches = clips * geometry.frames, geometry.grid[0] * geometry.grid[1]
    return VisualTokens(
        features=torch.zeros(frames, patches, geometry.width),
        cls=torch.zeros(frames, geometry.width),
        grid=geometry.grid,
        clip_ptr=torch.arange(clips + 1) * geometry.frames,
        captures={need: torch.zeros(frames, *_rest(need, geometry)) for need in reducer.needs},
        clip_space=torch.zeros(frames, patches, JOINT_WIDTH) if reducer.needs_text else None,
    )


def _rest(need: Capture, geometry: Geometry) -> tuple[int, ...]:
    """Return the shape of a capture behind its frames."""
    patches = geometry.grid[0] * geometry.grid[1]
    if need.kind == "sheet":
        return (1,)
    if need.kind != "keys":
        return (patches,)
    return (patches, geometry.width // geometry.heads if need.heads == "mean" else geometry.width)


def check_reduced(tokens: VisualTokens, reduced: Any) -> None:
    """Raise InterfaceError unless a result has the columns, shapes, types and bounds of `ReducedTokens`.

    Any: the result of a plug-in may be anything.
    """
    if not isinstance(reduced, ReducedTokens):
        raise InterfaceError(f"reduce must return ReducedTokens, got {type(reduced).__name__}")
    if not isinstance(reduced.features, Tensor) or reduced.features.ndim != 2:
        raise InterfaceError(f"features must be a tensor (S, D), got {_shown(reduced.features)}")
    count, width = len(reduced.features), tokens.features.shape[2]
    _check("features", reduced.features, (count, width), tokens.features.dtype)
    shapes = {"ptr": (len(tokens.clip_ptr),), "position": (count, 3)}
    for name, kind in TYPES.items():
        _check(name, getattr(reduced, name), shapes.get(name, (count,)), kind)
    _check_ptr(reduced.ptr.tolist(), count)
    _check_bounds(tokens, reduced)
    _check_order(tokens, reduced, count)


def check_not_empty(reduced: ReducedTokens) -> None:
    """Raise InterfaceError if nothing is left of a clip: no question could be answered from it."""
    empty = [clip for clip, (before, after) in enumerate(pairwise(reduced.ptr.tolist())) if before == after]
    if empty:
        raise InterfaceError(f"at least one token of each clip must be left, got none of clip {empty[0]}")


def _check(name: str, value: Any, shape: tuple[int, ...], kind: torch.dtype) -> None:
    """Raise InterfaceError unless a column is a tensor of this shape and type. Any: it comes from a plug-in."""
    if not isinstance(value, Tensor) or tuple(value.shape) != shape or value.dtype != kind:
        raise InterfaceError(f"{name} must be a tensor {shape} of {str(kind).removeprefix('torch.')}, got {_shown(value)}")


def _check_ptr(ptr: list[int], count: int) -> None:
    if ptr[0] != 0 or ptr[-1] != count:
        raise InterfaceError(f"ptr must begin with 0 and end with the {count} tokens, got {ptr}")
    if any(after < before for before, after in pairwise(ptr)):
        raise InterfaceError(f"ptr must not decrease, got {ptr}")


def _check_bounds(tokens: VisualTokens, reduced: ReducedTokens) -> None:
    """Raise InterfaceError for a frame, patch or kind that does not exist, or a negative size."""
    patches = tokens.features.shape[1]
    frames = int((tokens.clip_ptr[1:] - tokens.clip_ptr[:-1]).max())
    bounds = {"frame": (-1, frames - 1), "anchor": (-1, frames * patches - 1), "kind": (0, MERGED)}
    for name, (low, high) in bounds.items():
        values = getattr(reduced, name)
        if values.numel() and not (low <= int(values.min()) and int(values.max()) <= high):
            raise InterfaceError(f"{name} must be from {low} to {high}, got {int(values.min())} to {int(values.max())}")
    if not bool(((reduced.size >= 0) & reduced.size.isfinite()).all()) or not bool(reduced.position.isfinite().all()):
        raise InterfaceError("size must be finite and not negative, and position finite")


def _check_order(tokens: VisualTokens, reduced: ReducedTokens, count: int) -> None:
    """Raise InterfaceError for an owner or an order of other shapes, types or bounds."""
    if reduced.owner is not None:
        _check("owner", reduced.owner, (tokens.features.shape[0] * tokens.features.shape[1],), torch.int32)
        if reduced.owner.numel() and (int(reduced.owner.min()) < -1 or int(reduced.owner.max()) >= count):
            raise InterfaceError(
                f"owner must be from -1 to {count - 1}, got {int(reduced.owner.min())} to {int(reduced.owner.max())}"
            )
    if reduced.order is None:
        return
    if not isinstance(reduced.order, Order) or reduced.owner is None:
        raise InterfaceError("order must be an Order, and needs owner beside it")
    for field in fields(Order):
        _check(f"order.{field.name}", getattr(reduced.order, field.name), (count,), ORDER_TYPES[field.name])


def _shown(value: Any) -> str:
    """Return how a message shows a column. Any: it comes from a plug-in."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
