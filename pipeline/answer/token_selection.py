"""Which of a video's stored tokens a question sees: all, a cut of `nest`, or what a method that reads the question keeps.

Shapes: S stored tokens of one clip, F frames, N patches, M = F * N, D width, P joint image-text space.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.answer.text_reducer import check_text_reducer, parse_text_reducer
from pipeline.errors import ConfigError, StoreError, check_at_least_one

if TYPE_CHECKING:  # torch loads when a stage is built, not when a flag is parsed
    from torch import Tensor

    from pipeline.models.clip_space import JointSpace
    from pipeline.store.entries import Entry
    from reducers.base import ReducedTokens, Reducer
    from reducers.nest.cut import StoredNest

ORDERED_SINCE = 2
"""Version of `nest` from which on its order is stored."""
TRIMMED = 1
"""Version of how a method that reads the question sees an entry, beside the method's own: see `trimmed`."""
POSITIONS = 1
"""Version of `original_positions`."""


@dataclass(frozen=True, kw_only=True)
class SelectConfig:
    """Which stored tokens the model sees; all by default."""

    budget: int | None = None
    """Tokens per video, CLS rows included, folded from entries of nest; no video is encoded again."""
    coverage: float | None = None
    """Instead of a budget: as many tokens as explain this share of each video, e.g. 0.9. Entries of nest."""
    corpus_budget: int | None = None
    """Instead of a budget: mean tokens per video; all videos asked about are cut at one common gain, 32 at least."""
    by_question: Literal["off", "like", "unlike"] = "off"
    """Choose the second half of the budget by the question: patches like it or, as TRIM's published code, unlike it."""
    text_reducer: str | None = None
    """A reducer that reads the question, e.g. "trim(ratio=0.25,score=cosine)"; entries of none or nest."""
    positions: Literal["compact", "original"] = "compact"
    """original: a token has the position that it had in the unreduced prompt; compact: tokens are numbered anew."""
    text_tower: str | None = None
    """Directory of the CLIP text tower; default: text_tower inside the model's directory."""

    def __post_init__(self) -> None:
        given = [name for name in ("budget", "coverage", "corpus_budget", "text_reducer") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError(f"expected one of budget, coverage, corpus_budget and text_reducer, got {' and '.join(given)}")
        check_at_least_one(self, "budget", "corpus_budget")
        if self.coverage is not None and not 0 < self.coverage <= 1:
            raise ConfigError(f"coverage must be above 0 and at most 1, got {self.coverage}")
        if self.by_question != "off" and self.budget is None:
            raise ConfigError("--by-question requires --budget")

    @property
    def reads_question(self) -> bool:
        """Return whether two questions about a video may see different tokens."""
        return self.by_question != "off" or self.text_reducer is not None

    @property
    def cuts(self) -> bool:
        """Return whether entries of `nest` are cut."""
        return any(value is not None for value in (self.budget, self.coverage, self.corpus_budget))


def selection_spec(config: SelectConfig, space: "JointSpace | None", cut: float | None) -> dict[str, Any]:
    """Return what a selection adds to the answer fingerprint; nothing if everything is shown."""
    plain = SelectConfig()
    names = [field.name for field in fields(config) if field.name != "text_tower"]
    spec = {name: getattr(config, name) for name in names if getattr(config, name) != getattr(plain, name)}
    if config.text_reducer is not None:
        from reducers.base import describe

        spec["text_reducer"] = describe(parse_text_reducer(config.text_reducer))
    if config.reads_question and space is not None:
        spec["text_sha256"] = space.text_digest()
    if cut is not None:
        spec["cut"] = cut
    return {"selection": {**spec, "versions": _versions(config)}} if spec else {}


def _versions(config: SelectConfig) -> dict[str, int]:
    """Return the version of each piece of code that chooses what is shown, as far as these settings use it."""
    from pipeline.models.clip_space import EMBEDDING
    from reducers.nest.cut import ASK, CUT

    asks = config.by_question != "off"
    used = {
        "cut": CUT if config.cuts and not asks else None,
        "ask": ASK if asks else None,
        "trimmed": TRIMMED if config.text_reducer is not None else None,
        "embedding": EMBEDDING if config.reads_question else None,
        "positions": POSITIONS if config.positions == "original" else None,
    }
    return {name: version for name, version in used.items() if version is not None}


def check_selection(config: SelectConfig, stored: Mapping[str, Any], space: "JointSpace | None") -> None:
    """Raise ConfigError if entries of a spec cannot be shown that way, before any is read."""
    reducer = stored.get("reducer") or {}
    name, version = reducer.get("name"), reducer.get("version", 0)
    if config.cuts and (name != "nest" or version < ORDERED_SINCE):
        raise ConfigError(
            f"only entries of nest can be cut to a budget, these are of {name}: encode with --reducer nest, or answer without"
        )
    if not config.reads_question:
        return
    if config.text_reducer is not None:
        check_text_reducer(config.text_reducer)
        if name not in ("none", "nest"):
            raise ConfigError(f"{config.text_reducer} chooses among patches: encode with none or nest, this store has {name}")
    held = stored.get("clip_space")
    if held is None:
        raise ConfigError("the store holds no vectors in the joint image-text space: encode with --clip-space True")
    if space is not None and held["projection_sha256"] != space.visual_digest():
        raise ConfigError("the store's vectors were made with another visual projection than the text tower's")


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The tokens that a question sees."""

    features: "Tensor"
    """(S, D)."""
    positions: "Tensor | None"
    """(S,) place of each token in the unreduced span, None for compact positions."""
    span: int
    """Positions that the video takes."""


class Selection:
    """Shows entries of one spec. `cut`: the gain at which a corpus budget cuts every video."""

    def __init__(
        self, config: SelectConfig, stored: Mapping[str, Any], space: "JointSpace | None" = None, cut: float | None = None
    ) -> None:
        check_selection(config, stored, space)
        self.config, self.stored, self.space, self.cut = config, stored, space, cut
        self.reads_question = config.reads_question
        self._embedded = lru_cache(maxsize=4096)(self._embed)

    def show(self, entry: "Entry", question: str = "") -> Shown:
        """Return what a question sees of an entry; the question is looked at only if `reads_question`."""
        from reducers.base import ReducerError

        try:
            chosen = self._chosen(entry, question)
        except ReducerError as error:
            raise StoreError(f"{entry.video_id}: stored tokens cannot be cut: {error}") from error
        frames, height, width = entry.grid
        if self.config.positions == "compact":
            return Shown(features=chosen.features, positions=None, span=len(chosen.features))
        places = original_positions(chosen, entry.grid)
        return Shown(features=chosen.features, positions=places, span=frames * (height * width + 1))

    def _chosen(self, entry: "Entry", question: str) -> "ReducedTokens":
        if self.config.text_reducer is not None:
            return trimmed(entry, parse_text_reducer(self.config.text_reducer), self._embedded(question))
        if not self.config.cuts:
            return stored_tokens(entry)
        nest = self.nest(entry)
        budget = self._budget(nest)
        if self.config.by_question == "off":
            return nest.cut(budget)
        return nest.ask(self._embedded(question), budget, self.config.by_question)

    def nest(self, entry: "Entry") -> "StoredNest":
        """Return an entry of `nest` by rank. Raises ReducerError if it is not one."""
        return stored_nest(entry, self.stored)

    def _budget(self, nest: "StoredNest") -> int:
        if self.config.coverage is not None:
            return nest.least_for(self.config.coverage)
        if self.cut is not None:
            return nest.cut_at(self.cut)
        return self.config.budget or 1

    def _embed(self, question: str) -> "Tensor":
        if self.space is None:
            raise ConfigError("a method that reads the question needs a text tower")
        return self.space.embed([question])[0]


def stored_nest(entry: "Entry", stored: Mapping[str, Any]) -> "StoredNest":
    """Return an entry of `nest` by rank, with the parameters of its spec. Raises ReducerError if it has no order."""
    from reducers.nest.cut import StoredNest
    from reducers.nest.order import NestConfig

    config = NestConfig(**stored["reducer"]["params"])
    return StoredNest.of(stored_tokens(entry), entry.grid, config, _vectors(entry))


def stored_tokens(entry: "Entry") -> "ReducedTokens":
    """Return the tokens of an entry as the reducer gave them."""
    import torch

    from reducers.base import Order, ReducedTokens

    def tensor(values: Any) -> "Tensor":
        return torch.from_numpy(np.array(values))

    names = ("features", "frame", "anchor", "kind", "size", "position")
    order = entry.order
    held = None if order is None else {name: tensor(value) for name, value in asdict(order).items()}
    owner = None if held is None else held.pop("owner")
    return ReducedTokens(
        **{name: tensor(getattr(entry, name)) for name in names},
        ptr=torch.tensor([0, len(entry.features)]),
        owner=owner,
        order=None if held is None else Order(**held),
    )


def _vectors(entry: "Entry") -> "Tensor | None":
    import torch

    return None if entry.clip_space is None else torch.from_numpy(np.array(entry.clip_space)).float()


def trimmed(entry: "Entry", reducer: "Reducer", text_P: "Tensor") -> "ReducedTokens":
    """Return what a method that reads the question keeps of an entry's patches; CLS rows are left out, as TRIM does.

    Entries that hold every patch are seen frame by frame. Others, of `nest`, are one row of all tokens that are left.
    """
    import torch

    from reducers.base import ReducerError, TextQuery, VisualTokens

    tokens, vectors = stored_tokens(entry), _vectors(entry)
    if vectors is None:
        raise ReducerError("no vectors in the joint image-text space are stored")
    at_K = (tokens.anchor >= 0).nonzero()[:, 0]
    at_K = at_K[tokens.anchor[at_K].argsort(stable=True)]
    frames, height, width = entry.grid
    whole = len(at_K) == frames * height * width
    rows, grid = (frames, (height, width)) if whole else (1, (1, len(at_K)))
    seen = VisualTokens(
        features=tokens.features[at_K].view(rows, -1, tokens.features.shape[1]),
        cls=None,
        grid=grid,
        clip_ptr=torch.tensor([0, rows]),
        captures={},
        clip_space=vectors[at_K].view(rows, -1, vectors.shape[1]),
    )
    reduced = reducer.reduce(seen, TextQuery(embedding=text_P[None]))
    return reduced if whole else _placed(reduced, tokens, at_K)


def _placed(reduced: "ReducedTokens", tokens: "ReducedTokens", at_K: "Tensor") -> "ReducedTokens":
    """Return tokens chosen from a list with the anchors and places that they have in the clip."""
    known = reduced.anchor >= 0
    at = at_K[reduced.anchor.long().clamp(min=0)]
    return replace(
        reduced,
        frame=tokens.frame[at].where(known, reduced.frame.new_tensor(-1)),
        anchor=tokens.anchor[at].where(known, reduced.anchor.new_tensor(-1)),
        position=tokens.position[at].where(known[:, None], reduced.position.new_tensor(-1.0)),
        owner=None,
    )


def original_positions(tokens: "ReducedTokens", grid: tuple[int, int, int]) -> "Tensor":
    """Return the place of each token (S,) in the unreduced span of F * (N + 1): CLS, then N patches, frame by frame.

    A token without an anchor lies where the patches behind it are on average; one of a whole clip at its end.
    """
    import torch

    from reducers.base import CLS

    frames, height, width = grid
    each = height * width + 1
    anchor_S, frame_S = tokens.anchor.long(), tokens.frame.long()
    patches = height * width
    anchored_S = torch.div(anchor_S, patches, rounding_mode="floor") * each + 1 + anchor_S % patches
    mean_S = (tokens.position[:, 1] * width + tokens.position[:, 2]).round().long()
    inner_S = torch.where(tokens.position[:, 1] >= 0, 1 + mean_S, each - 1)
    inner_S = torch.where(tokens.kind == CLS, 0, inner_S)
    loose_S = torch.where(frame_S >= 0, frame_S * each + inner_S, frames * each - 1)
    return torch.where(anchor_S >= 0, anchored_S, loose_S).clamp(0, frames * each - 1)
