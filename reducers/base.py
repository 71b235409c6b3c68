"""The interface of all reducers; what they share to work is in `ranking`, `budgets` and `layout`.

Shapes: V clips, F frames (of all clips together), N = gh * gw patches per frame in raster order, D width of the tower,
S tokens kept (of all clips together), P width of the joint image-text space.

Rules that hold for every method: scores in float32; sorting is stable, the lower index wins a tie; the result of a clip
does not depend on who shares the batch; nothing raises on data but non-finite values, which are named by frame.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from reducers.captures import Capture as Capture
from reducers.captures import captured, clips_of, frame_rows, square
from reducers.errors import BudgetError as BudgetError
from reducers.errors import ReducerError as ReducerError
from reducers.errors import ReducerSpecError as ReducerSpecError
from reducers.origin import origin_of

KEPT, ENRICHED, CONTEXTUAL, AGGREGATE, CLS, MERGED = range(6)
"""Kinds of token: unchanged; a centre that took in neighbours; a target that took in the rest; a mean or residual; the
class token; merged inside the tower."""


@dataclass(frozen=True, kw_only=True)
class VisualTokens:
    """What the tower gives for the frames of V clips."""

    features: Tensor
    """(F, N, D): patch rows of the selected layer, any float dtype."""
    cls: Tensor | None
    """(F, D): CLS rows, None for towers without."""
    grid: tuple[int, int]
    """gh, gw."""
    clip_ptr: Tensor
    """(V + 1,) int64: frames of clip v are clip_ptr[v] .. clip_ptr[v + 1]."""
    captures: Mapping[Capture, Tensor]
    """What the reducer asked for, each of the shape that `Capture` names, one row per frame."""
    clip_space: Tensor | None = None
    """(F, N, P): patches in the joint image-text space."""

    def __post_init__(self) -> None:
        frames, patches, width = self.features.shape
        if self.grid[0] * self.grid[1] != patches:
            raise ReducerError(f"expected {self.grid[0]} x {self.grid[1]} patches per frame, got {patches}")
        on_host = self.clip_ptr.device.type == "cpu"  # to look at bounds elsewhere is to wait for the tower
        if on_host and (int(self.clip_ptr[-1]) != frames or int(self.clip_ptr[0]) != 0):
            raise ReducerError(f"expected clips to cover {frames} frames, got bounds {self.clip_ptr.tolist()}")
        if self.cls is not None and self.cls.shape != (frames, width):
            raise ReducerError(f"expected CLS rows ({frames}, {width}), got {tuple(self.cls.shape)}")

    @classmethod
    def from_features(
        cls,
        features: Tensor,
        *,
        cls_rows: Tensor | None = None,
        attention: Tensor | None = None,
        keys: Tensor | None = None,
        heads: int | None = None,
        grid: tuple[int, int] | None = None,
        clip_ptr: Tensor | None = None,
        captures: Mapping[Capture, Tensor] | None = None,
        clip_space: Tensor | None = None,
    ) -> "VisualTokens":
        """Return tokens of any CLIP-like tower, of one clip (F, ...) or of V clips of equal length (V, F, ...).

        Args:
            features: (F, N, D) or (V, F, N, D), patches in raster order, CLS not among them.
            cls_rows: (F, D) or (V, F, D), where the tower has CLS.
            attention: (F, N) or (V, F, N), CLS attention or attention received; given to a reducer whichever block and
                heads it asks for.
            keys: (F, N, D) or (V, F, N, D), heads side by side; likewise.
            heads: attention heads of the tower; needed for reducers that want keys averaged over heads.
            grid: rows and columns of patches; default: square.
            clip_ptr: (V + 1,) int64, bounds of clips of unequal length in (F, ...).
            captures: exact captures of single blocks, rows (F, ...); they replace `attention` and `keys`.
            clip_space: (F, N, P) or (V, F, N, P), patches in the joint image-text space.

        Raises ReducerError for shapes that do not fit together.
        """
        flat, ptr = clips_of(features, clip_ptr)
        shape = flat.shape[:2]
        taken = captured(shape, attention=attention, keys=keys, heads=heads)
        return cls(
            features=flat,
            cls=None if cls_rows is None else cls_rows.reshape(-1, cls_rows.shape[-1]),
            grid=square(shape[1]) if grid is None else grid,
            clip_ptr=ptr,
            captures={**taken, **(captures or {})},
            clip_space=None if clip_space is None else frame_rows("clip_space", clip_space, shape, 1),
        )

    def capture(self, needed: Capture) -> Tensor:
        """Return a capture, of the shape that `Capture` names. Raises ReducerError if the tower did not take it."""
        if needed not in self.captures:
            raise ReducerError(f"expected capture {needed}, got {list(self.captures)}")
        return self.captures[needed]


@dataclass(frozen=True, kw_only=True)
class TextQuery:
    """What a question looks like to a reducer."""

    embedding: Tensor
    """(V, P): projected end-of-text state, not normalised."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """How the tokens of a nested method follow each other: all that cutting them to a smaller budget later needs.

    A rank counts the tokens of a clip, 0 the first to be kept; CLS rows have none.
    """

    rank: Tensor
    """(S,) int16, -1 for CLS."""
    parent: Tensor
    """(S,) int16: the rank that a token is folded into."""
    link: Tensor
    """(S,) bool: like enough to its parent to be merged into it; dropped otherwise."""
    weight: Tensor
    """(S,) float32: merge weight."""
    gain: Tensor
    """(S,) float32: share of the clip's mass that the token explains beyond all ranks before it."""


@dataclass(frozen=True, kw_only=True)
class ReducedTokens:
    """Tokens that are left, ragged over clips; grouped by clip, then frame, then the method's own order."""

    features: Tensor
    """(S, D), dtype of the input."""
    ptr: Tensor
    """(V + 1,) int64: tokens of clip v are ptr[v] .. ptr[v + 1]."""
    frame: Tensor
    """(S,) int16: frame in the clip; -1 for a token of the whole clip."""
    anchor: Tensor
    """(S,) int32: frame in the clip * N + patch that the token stands for, -1 if none."""
    kind: Tensor
    """(S,) uint8: KEPT .. MERGED."""
    size: Tensor
    """(S,) float32: patches the token speaks for; 0 for CLS."""
    position: Tensor
    """(S, 3) float32: frame, row, column of the anchor or mean over the patches behind it; -1 for CLS."""
    owner: Tensor | None = None
    """(F * N,) int32: place inside the clip of the token that holds each patch, -1 if dropped."""
    order: Order | None = None
    """Of nested methods; None for all others."""

    def clip(self, number: int) -> slice:
        """Return where the tokens of a clip lie."""
        return slice(int(self.ptr[number]), int(self.ptr[number + 1]))


class Reducer(Protocol):
    """A configured method. `needs` are the captures it reads, `needs_text` says that it must run at answer time."""

    version: ClassVar[int]
    needs_text: ClassVar[bool]
    modifies_tower: ClassVar[bool]

    @property
    def name(self) -> str:
        """What it is called; `first|second` for a composition."""
        ...

    @property
    def needs(self) -> frozenset[Capture]:
        """Captures that the tower must take."""
        ...

    @property
    def config(self) -> Any:
        """The dataclass of all parameters. Any: every method has its own."""
        ...

    def fingerprint(self) -> str:
        """Return what tells this reducer from every other: canonical JSON of `describe`."""
        ...

    def reduce(self, tokens: VisualTokens, text: TextQuery | None = None) -> ReducedTokens:
        """Reduce the frames of all clips."""
        ...


@runtime_checkable
class TowerReducer(Protocol):
    """What a reducer with `modifies_tower` has besides: how many rows each block merges, and the tokens that are left."""

    @property
    def prop_attn(self) -> bool:
        """Whether a merged row counts in attention as often as it stands for a patch."""
        ...

    def schedule(self, patches: int, blocks: int) -> list[int]:
        """Return how many rows each block merges."""
        ...

    def reduced(self, tokens: VisualTokens, x_FKD: Tensor, size_FK: Tensor, slot_FN: Tensor) -> ReducedTokens:
        """Return the merged rows of all clips, see `ToMe.reduced`."""
        ...


class Fingerprinted:
    """Gives every reducer its `fingerprint`; it neither reads the question nor works in the tower unless it says so itself."""

    needs_text: ClassVar[bool] = False
    modifies_tower: ClassVar[bool] = False

    def fingerprint(self: Reducer) -> str:
        """Return canonical JSON of name, version and all parameters."""
        return json.dumps(describe(self), sort_keys=True, separators=(",", ":"))


def describe(reducer: Reducer) -> dict[str, Any]:
    """Return name, version and all parameters: what a reducer adds to the encode fingerprint.

    A plug-in adds name and version of its distribution, since code that it imports may move its tokens too.

    Raises ReducerError if the config is not a dataclass.
    """
    config = reducer.config
    if not is_dataclass(config) or isinstance(config, type):
        raise ReducerError(f"expected the config of {reducer.name} to be a dataclass, got {config!r}")
    found = {"name": reducer.name, "version": reducer.version, "params": asdict(config)}
    origin = origin_of(type(reducer))
    return found if origin is None else {**found, "distribution": asdict(origin)}


def check_finite(tokens: VisualTokens) -> None:
    """Raise ReducerError that names the first frame with a value that is not finite."""
    optional = (part for part in (tokens.cls, tokens.clip_space) if part is not None)
    good_F = torch.ones(len(tokens.features), dtype=torch.bool, device=tokens.features.device)
    for values in (tokens.features, *optional, *tokens.captures.values()):
        good_F &= (values.flatten(1) * 0).sum(dim=1) == 0  # infinity and NaN times 0 are NaN
    if not bool(good_F.all()):
        frame = int((~good_F).nonzero()[0])
        raise ReducerError(f"frame {frame} holds a value that is not finite")
