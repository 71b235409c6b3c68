"""What a selection refuses, and where tokens lie in the unreduced prompt, on tokens made by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.answer.token_selection import SelectConfig, Selection, check_selection, original_positions
from pipeline.errors import ConfigError, StoreError
from pipeline.store.token_store import TokenStore
from reducers.base import CLS, KEPT, MERGED, ReducedTokens
from tests.tables import SPEC, encoded, row


def stored(name: str, version: int = 2, **more: Any) -> dict[str, Any]:
    return {
        **SPEC,
        "reducer": {"name": name, "version": version, "params": {}},
        "clip_space": {"projection_sha256": "x"},
        **more,
    }


@pytest.mark.parametrize(
    ("asked", "spec", "said"),
    [
        ({"budget": 8}, stored("nest", version=1), "only entries of nest can be cut"),
        ({"corpus_budget": 8}, stored("prumerge+"), "these are of prumerge"),
        ({"budget": 8}, {"reducer": None}, "these are of None"),
        ({"text_reducer": "trim"}, stored("prumerge+"), "this store has prumerge"),
        ({"text_reducer": "trim"}, stored("spatial"), "encode with none or nest"),
        ({"text_reducer": "trim"}, stored("none", clip_space=None), "--clip-space True"),
        ({"text_reducer": "evs"}, stored("none"), "evs does not read the question"),
        ({"text_reducer": "magic"}, stored("none"), "unknown reducer"),
    ],
)
def test_entries_that_cannot_be_shown_that_way_are_refused(asked: dict[str, Any], spec: dict[str, Any], said: str) -> None:
    """By their spec alone; a store of the first `nest` has no order to cut by."""
    with pytest.raises(ConfigError, match=said):
        check_selection(SelectConfig(**asked), spec, None)
    with pytest.raises(ConfigError, match=said):
        Selection(SelectConfig(**asked), spec)


@pytest.mark.parametrize("name", ["nest", "none"])
def test_entries_that_can_be_shown_are_not_refused(name: str) -> None:
    """Everything of any store, patches of `none` and `nest` by the question, cuts of `nest`."""
    check_selection(SelectConfig(text_reducer="trim"), stored(name), None)
    check_selection(SelectConfig(), stored("prumerge+", clip_space=None), None)
    if name == "nest":
        check_selection(SelectConfig(coverage=1.0), stored(name, clip_space=None), None)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"corpus_budget": 0}, "corpus_budget must be at least 1, got 0"),
        ({"coverage": 0.0}, "coverage must be above 0 and at most 1, got 0"),
        ({"coverage": float("nan")}, "coverage must be above 0"),
        ({"corpus_budget": 8, "text_reducer": "trim"}, "got corpus_budget and text_reducer"),
        ({"by_question": "unlike", "coverage": 0.5}, "requires --budget"),
    ],
)
def test_numbers_that_cannot_be_and_two_ways_at_once_are_refused(asked: dict[str, Any], said: str) -> None:
    """With what was given."""
    with pytest.raises(ConfigError, match=said):
        SelectConfig(**asked)


def test_an_entry_without_the_order_that_its_spec_promises_is_not_cut(tmp_path: Path) -> None:
    """It is no entry of ours: the store cannot be trusted, and the sentence names the video."""
    spec = stored("nest")
    store = TokenStore.create(str(tmp_path), spec)
    store.commit(encoded([row("a")]))
    shown = Selection(SelectConfig(budget=2), spec)
    with pytest.raises(StoreError, match="a: stored tokens cannot be cut"):
        shown.show(TokenStore.open(str(tmp_path)).read("a"))


def test_a_question_cannot_be_read_without_a_text_tower(tmp_path: Path) -> None:
    """A wrong setting, not a broken store."""
    spec = stored("none")
    TokenStore.create(str(tmp_path), spec).commit(encoded([row("a")]))
    shown = Selection(SelectConfig(text_reducer="trim"), spec)
    with pytest.raises(ConfigError, match="needs a text tower"):
        shown.show(TokenStore.open(str(tmp_path)).read("a"), "what is it ?")


def test_places_in_the_unreduced_prompt() -> None:
    """Two frames of 2 x 3 patches, a span of 14: CLS rows, anchors, means, a whole frame, the whole clip."""
    tokens = [
        (CLS, 0, -1, (-1.0, -1.0), 0),
        (KEPT, 0, 4, (1.0, 1.0), 1 + 4),
        (MERGED, 0, -1, (1.0, 0.4), 1 + 3),
        (MERGED, 0, -1, (-1.0, -1.0), 6),
        (CLS, 1, -1, (-1.0, -1.0), 7),
        (KEPT, 1, 6, (0.0, 0.0), 7 + 1),
        (MERGED, 1, -1, (0.0, 1.0), 7 + 1 + 1),
        (KEPT, 1, 11, (1.0, 2.0), 13),
        (MERGED, -1, -1, (-1.0, -1.0), 13),
    ]
    kind, frame, anchor, place, want = zip(*tokens, strict=True)
    position = torch.tensor([(float(time), *where) for time, where in zip(frame, place, strict=True)])
    given = ReducedTokens(
        features=torch.zeros(len(tokens), 4),
        ptr=torch.tensor([0, len(tokens)]),
        frame=torch.tensor(frame, dtype=torch.int16),
        anchor=torch.tensor(anchor, dtype=torch.int32),
        kind=torch.tensor(kind, dtype=torch.uint8),
        size=torch.ones(len(tokens)),
        position=position,
    )
    assert original_positions(given, (2, 2, 3)).tolist() == list(want)
