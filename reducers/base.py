"""The interface of all reducers, and the few operations that they share.

Shapes: V clips, F frames (of all clips together), N = gh * gw patches per frame in raster order, D width of the tower,
S tokens kept (of all clips together), P width of the joint image-text space.

Rules that hold for every method: scores in float32; sorting is stable, the lower index wins a tie; the result of a clip
does not depend on who shares the batch; nothing raises on data but non-finite values, which are named by frame.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

KEPT, ENRICHED, CONTEXTUAL, AGGREGATE, CLS, MERGED = range(6)
"""Kinds of token: unchanged; a centre that took in neighbours; a target that took in the rest; a mean or residual; the
class token; merged inside the tower."""


class ReducerError(ValueError):
    """A reducer cannot work on what it was given."""


class BudgetError(ReducerError):
    """A budget that the method cannot meet."""


class ReducerSpecError(ReducerError):
    """A spec string names an unknown reducer, an unknown parameter or a value that is not allowed."""


@dataclass(frozen=True, kw_only=True)
class Capture:
    """What a reducer needs from the tower besides features.

    `block` is relative to the selected layer: `selected` produced it (L-2), `next` consumes it (L-1, of which only the first
    norm and the query and key projections are evaluated), `first` is block 0.
    """

    kind: Literal["cls_attn", "keys", "received", "sheet"]
    """cls_attn and received: (F, N) float32. keys: (F, N, D) when heads are concatenated, (F, N, d) when averaged.
    sheet: (F, 1) float32, CLS attention to the tile of each frame on a contact sheet of its clip."""
    block: Literal["selected", "next", "first"] = "selected"
    heads: Literal["concat", "sum", "mean"] = "sum"


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
    clip_space: Tensor | None = None
    """(F, N, P): patches in the joint image-text space."""

    def __post_init__(self) -> None:
        frames, patches, width = self.features.shape
        if self.grid[0] * self.grid[1] != patches:
            raise ReducerError(f"expected {self.grid[0]} x {self.grid[1]} patches per frame, got {patches}")
        if int(self.clip_ptr[-1]) != frames or int(self.clip_ptr[0]) != 0:
            raise ReducerError(f"expected clips to cover {frames} frames, got bounds {self.clip_ptr.tolist()}")
        if self.cls is not None and self.cls.shape != (frames, width):
            raise ReducerError(f"expected CLS rows ({frames}, {width}), got {tuple(self.cls.shape)}")

    def capture(self, needed: Capture) -> Tensor:
        """Return a capture, or say which one the tower did not take."""
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


class Fingerprinted:
    """Gives every reducer its `fingerprint`."""

    def fingerprint(self: Reducer) -> str:
        """Return canonical JSON of name, version and all parameters."""
        return json.dumps(describe(self), sort_keys=True, separators=(",", ":"))


def describe(reducer: Reducer) -> dict[str, Any]:
    """Return name, version and all parameters: what a reducer adds to the encode fingerprint."""
    config = reducer.config
    if not is_dataclass(config) or isinstance(config, type):
        raise ReducerError(f"expected the config of {reducer.name} to be a dataclass, got {config!r}")
    return {"name": reducer.name, "version": reducer.version, "params": asdict(config)}


def check_finite(tokens: VisualTokens, *, captures: bool = True) -> None:
    """Raise ReducerError that names the first frame with a value that is not finite."""
    checked = [tokens.features, *(part for part in (tokens.cls, tokens.clip_space) if part is not None)]
    checked += list(tokens.captures.values()) if captures else []
    good_F = torch.ones(len(tokens.features), dtype=torch.bool, device=tokens.features.device)
    for values in checked:
        good_F &= (values.flatten(1) * 0).sum(dim=1) == 0  # infinity and NaN times 0 are NaN
    if not bool(good_F.all()):
        frame = int((~good_F).nonzero()[0])
        raise ReducerError(f"frame {frame} holds a value that is not finite")


def ranked(score: Tensor) -> Tensor:
    """Return indices by falling score along the last dimension; the lower index wins a tie."""
    return score.argsort(dim=-1, descending=True, stable=True)


def rank_of(order: Tensor) -> Tensor:
    """Return the place of each index in an order along the last dimension."""
    places = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)


def top_mask(score: Tensor, count: Tensor | int) -> Tensor:
    """Return True for the `count` largest scores of each row; `count` may differ by row (...,)."""
    limit = count[..., None] if isinstance(count, Tensor) else count
    return rank_of(ranked(score)) < limit


def upper_fence(values: Tensor, factor: float, valid: Tensor | None = None) -> Tensor:
    """Return Q3 + factor * (Q3 - Q1) of each row (..., 1) over its valid values.

    Quartiles interpolate linearly between sorted values, at place p * (n - 1).
    """
    values = values.float()
    if valid is None:
        valid = torch.ones_like(values, dtype=torch.bool)
    rising = values.masked_fill(~valid, torch.inf).sort(dim=-1).values
    last = (valid.sum(-1, keepdim=True) - 1).clamp(min=0)
    lower, upper = (_between(rising, share * last.double()) for share in (0.25, 0.75))
    return upper + factor * (upper - lower)


def _between(rising: Tensor, place: Tensor) -> Tensor:
    below, above = rising.gather(-1, place.floor().long()), rising.gather(-1, place.ceil().long())
    return below + (place - place.floor()).float() * (above - below)


def share_to_count(patches: int, ratio: float) -> int:
    """Return int(patches * ratio), in double precision: 0.2 * 256 is 51."""
    return int(patches * ratio)


def normalised(rows: Tensor) -> Tensor:
    """Return float32 rows of length 1; rows of length 0 stay 0."""
    rows = rows.float()
    return rows / rows.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def frames_in_clip(clip_ptr: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for each frame, its clip (F,) and its number inside the clip (F,)."""
    lengths = clip_ptr[1:] - clip_ptr[:-1]
    clip_F = torch.repeat_interleave(torch.arange(len(lengths), device=clip_ptr.device), lengths)
    return clip_F, torch.arange(int(clip_ptr[-1]), device=clip_ptr.device) - clip_ptr[clip_F]


def clip_frames(clip_ptr: Tensor) -> tuple[Tensor, Tensor]:
    """Return the frames of each clip side by side (V, longest clip), padded with frame 0, and which are real."""
    lengths = clip_ptr[1:] - clip_ptr[:-1]
    numbers = torch.arange(int(lengths.max()), device=clip_ptr.device)
    real = numbers < lengths[:, None]
    return torch.where(real, clip_ptr[:-1, None] + numbers, 0), real


@dataclass(frozen=True, kw_only=True)
class Slots:
    """A block of output slots per row, some of them empty; `assemble` makes ReducedTokens of several blocks.

    Shapes: R rows (frames, or clips for methods that flatten a clip), K slots, D width. The order of blocks and slots is
    the order of tokens.
    """

    features: Tensor
    """(R, K, D)."""
    valid: Tensor
    """(R, K) bool."""
    anchor: Tensor
    """(R, K) int64: patch of the frame, or of the flattened clip; -1 if none."""
    kind: int | Tensor
    """One kind for all, or (R, K)."""
    size: Tensor
    """(R, K) float32."""
    position: Tensor | None = None
    """(R, K, 3) frame in the clip, row and column where they are not the anchor's."""


def assemble(
    tokens: VisualTokens, blocks: Sequence[Slots], slot_RM: Tensor | None = None, *, scope: str = "frame"
) -> ReducedTokens:
    """Lay out blocks row by row.

    Args:
        tokens: what was reduced.
        blocks: output slots, R = F rows for scope "frame", R = V rows for scope "clip".
        slot_RM: for each patch of a row the slot that holds it, counted over the blocks side by side, or -1.
        scope: "frame" or "clip".
    """
    patches = tokens.features.shape[1]
    clip_R, number_R = frames_in_clip(tokens.clip_ptr)
    if scope == "clip":
        clip_R, number_R = torch.arange(len(tokens.clip_ptr) - 1, device=clip_R.device), torch.zeros_like(clip_R)
    valid = torch.cat([block.valid for block in blocks], dim=1)
    anchor = torch.cat([block.anchor for block in blocks], dim=1)
    anchor = torch.where(anchor >= 0, anchor + number_R[: len(anchor), None] * patches, -1)
    kind = torch.cat([_spread(block.kind, block.valid) for block in blocks], dim=1)
    position = torch.cat([_positions(b, number_R, tokens.grid) for b in blocks], dim=1)
    time = torch.div(anchor, patches, rounding_mode="floor")
    time = torch.where(anchor >= 0, time, number_R[: len(anchor), None] if scope == "frame" else -1)
    counts_V = torch.zeros(len(tokens.clip_ptr) - 1, dtype=torch.int64, device=valid.device)
    counts_V.index_add_(0, clip_R, valid.sum(1))
    ptr = torch.cat([counts_V.new_zeros(1), counts_V.cumsum(0)])
    return ReducedTokens(
        features=torch.cat([block.features for block in blocks], dim=1)[valid].to(tokens.features.dtype),
        ptr=ptr,
        frame=time[valid].to(torch.int16),
        anchor=anchor[valid].to(torch.int32),
        kind=kind[valid],
        size=torch.cat([block.size for block in blocks], dim=1)[valid].float(),
        position=torch.where((kind == CLS)[..., None], -1.0, position)[valid],
        owner=None if slot_RM is None else _owners(tokens, slot_RM, valid, ptr[clip_R]),
    )


def _spread(kind: int | Tensor, like: Tensor) -> Tensor:
    if isinstance(kind, Tensor):
        return kind.to(torch.uint8)
    return torch.full(like.shape, kind, dtype=torch.uint8, device=like.device)


def _positions(block: Slots, number_R: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return frame, row and column (R, K, 3) of the anchors; frame only, and -1, where there is no anchor."""
    if block.position is not None:
        return block.position.float()
    patches = grid[0] * grid[1]
    time = number_R[: len(block.anchor), None] + torch.div(block.anchor.clamp(min=0), patches, rounding_mode="floor")
    row, column = torch.div(block.anchor % patches, grid[1], rounding_mode="floor"), block.anchor % grid[1]
    places = torch.stack([row, column], dim=-1).masked_fill((block.anchor < 0)[..., None], -1)
    return torch.cat([time[..., None], places], dim=-1).float()


def _owners(tokens: VisualTokens, slot_RM: Tensor, valid_RK: Tensor, start_R: Tensor) -> Tensor:
    """Turn slots of a row into places inside the clip (F * N,)."""
    place_RK = (valid_RK.flatten().cumsum(0) - 1).view_as(valid_RK) - start_R[: len(valid_RK), None]
    slot = slot_RM.clamp(min=0)
    owner_RM = torch.where((slot_RM >= 0) & valid_RK.gather(1, slot), place_RK.gather(1, slot), -1)
    if len(owner_RM) != len(tokens.features):
        _, real = clip_frames(tokens.clip_ptr)
        owner_RM = owner_RM.view(*real.shape, -1)[real]
    return owner_RM.flatten().to(torch.int32)


def cls_slot(cls_FD: Tensor) -> Slots:
    """Return one slot per frame for its CLS row."""
    one = torch.ones(len(cls_FD), 1, device=cls_FD.device)
    nowhere = torch.full((len(cls_FD), 1), -1, device=cls_FD.device)
    return Slots(features=cls_FD[:, None], valid=one.bool(), anchor=nowhere, kind=CLS, size=0 * one)
