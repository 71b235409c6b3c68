"""Stored once, shown as asked: budgets, coverage and questions are served from the store alone."""

import gc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.answer.stage import AnswerConfig, corpus_cut
from pipeline.answer.token_selection import SelectConfig, Selection, stored_tokens
from pipeline.decode.config import DecodeConfig
from pipeline.decode.stage import Decode
from pipeline.encode.batching import frames_of
from pipeline.encode.stage import Encode, EncodeConfig
from pipeline.errors import ConfigError
from pipeline.models.clip_space import JointSpace
from pipeline.store.entries import Entry
from pipeline.store.token_store import TokenStore
from reducers.base import CLS, KEPT
from reducers.nest.cut import StoredNest
from reducers.registry import parse
from tests.selection.stored import FRAMES, NAMES, SHAPES, encoded, show
from tests.tables import corpus


def test_everything_is_shown_unless_something_else_is_asked_for(nest: TokenStore) -> None:
    """The stored rows as they are."""
    entry = nest.read(NAMES[0])
    assert torch.equal(show(nest).features, torch.from_numpy(np.array(entry.features)))
    assert len(entry.features) == 512


@pytest.mark.parametrize("budget", [1, 15, 16, 32, 128, 300, 512, 9999])
def test_a_cut_is_what_encoding_to_that_budget_gives(nest: TokenStore, videos: Path, tmp_path: Path, budget: int) -> None:
    """The same patches in the same order; features differ by the rounding of the stored half precision only."""
    aimed = encoded(videos, tmp_path, f"nest(keep={min(budget, 512)})")
    want = aimed.read(NAMES[0])
    chosen = Selection(SelectConfig(budget=budget), nest.spec)._chosen(nest.read(NAMES[0]), "")
    assert len(chosen.features) == min(budget, 512)
    assert chosen.anchor.tolist() == want.anchor.tolist()
    assert chosen.kind.tolist() == want.kind.tolist()
    np.testing.assert_allclose(chosen.features.numpy(), want.features.astype(np.float32), atol=4e-3, rtol=4e-3)
    assert chosen.size.tolist() == want.size.tolist()


def test_a_cut_can_be_cut_again(nest: TokenStore, videos: Path, tmp_path: Path) -> None:
    """An entry of 128 tokens holds the order of its 128, and folds to 64 of the same patches."""
    small = encoded(videos, tmp_path, "nest(keep=128)")
    both = [Selection(SelectConfig(budget=64), store.spec)._chosen(store.read(NAMES[1]), "") for store in (small, nest)]
    assert both[0].anchor.tolist() == both[1].anchor.tolist()
    np.testing.assert_allclose(both[0].features, both[1].features, atol=8e-3, rtol=8e-3)


def test_coverage_gives_each_video_what_it_needs(nest: TokenStore) -> None:
    """More coverage, more tokens; the gains of the shown prefix reach it and one rank less does not."""
    counts = [len(show(nest, coverage=share).features) for share in (0.5, 0.8, 0.9)]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
    held = Selection(SelectConfig(coverage=0.8), nest.spec).nest(nest.read(NAMES[0]))
    patches = counts[1] - FRAMES
    gains = held.superset.gain.double().cumsum(0)
    assert gains[patches - 2] < 0.8 <= gains[patches - 1]


def test_a_corpus_budget_is_a_mean(nest: TokenStore) -> None:
    """All videos are cut at one gain; together they hold no more than was asked for."""
    for mean in (48, 100, 200):
        config = AnswerConfig(model=SHAPES, select=SelectConfig(corpus_budget=mean))
        cut = corpus_cut(config, nest, NAMES)
        shown = [Selection(config.select, nest.spec, cut=cut).show(nest.read(name)) for name in NAMES]
        total = sum(len(one.features) for one in shown)
        assert 0.95 * mean * 3 - 3 <= total <= mean * 3
    config = AnswerConfig(model=SHAPES, select=SelectConfig(corpus_budget=33))
    with pytest.raises(ConfigError, match="corpus_budget 33 is too small"):
        corpus_cut(config, nest, NAMES)


def test_a_corpus_budget_holds_one_entry_at_a_time(nest: TokenStore) -> None:
    """A corpus may be larger than memory: of the entries that were read only the gains are left."""
    alive = []

    class Watched:
        spec = nest.spec

        def read(self, name: str) -> Entry:
            alive.append(sum(type(one) is StoredNest for one in gc.get_objects()))
            return nest.read(name)

    corpus_cut(AnswerConfig(model=SHAPES, select=SelectConfig(corpus_budget=100)), Watched(), NAMES)
    assert max(alive) - alive[0] <= 1


def test_the_question_chooses_half_of_the_budget(nest: TokenStore, space: JointSpace) -> None:
    """Coverage first, so much is common; the other half differs by question and by sign, and is nearer to the question."""
    asked = {"budget": 64, "space": space}
    red, blue = (show(nest, f"where is the {colour} circle ?", by_question="like", **asked) for colour in ("red", "blue"))
    unlike = show(nest, "where is the red circle ?", by_question="unlike", **asked)
    assert len(red.features) == len(blue.features) == len(unlike.features) == 64
    assert not torch.equal(red.features, unlike.features)
    held = Selection(SelectConfig(budget=64), nest.spec).nest(nest.read(NAMES[0]))
    text = space.embed(["where is the red circle ?"])[0]
    like, far = (set(held.ask(text, 64, sign).anchor.tolist()) for sign in ("like", "unlike"))
    relevance = dict(zip(held.superset.id.tolist(), (held.vectors @ text).tolist(), strict=True))
    mean = [np.mean([relevance[at] for at in some if at >= 0]) for some in (like - far, far - like)]
    assert mean[0] > mean[1]


def test_trim_from_the_store_is_trim_on_the_tower(whole: TokenStore, space: JointSpace) -> None:
    """Every patch is stored: the same ones are kept, frame by frame, up to ties of int8 vectors; the mean is appended."""
    entry = whole.read(NAMES[0])
    question = "what is the color of the square ?"
    patches = torch.from_numpy(np.array(entry.features))[torch.from_numpy(np.array(entry.kind)) == KEPT]
    exact = space.project(Encode(EncodeConfig(model=SHAPES, reducer="none", device="cpu")).tower.model, patches.float())
    scores = (exact @ space.embed([question])[0]).view(FRAMES, 64)
    shown = Selection(SelectConfig(text_reducer="trim(ratio=0.25)"), whole.spec, space)._chosen(entry, question)
    assert len(shown.features) == FRAMES * 17
    kept = shown.anchor[shown.anchor >= 0].view(FRAMES, 16) - torch.arange(FRAMES)[:, None] * 64
    lowest = scores.argsort(dim=1)[:, :16]
    agree = [len(set(a.tolist()) & set(b.tolist())) for a, b in zip(kept, lowest, strict=True)]
    assert sum(agree) >= 0.97 * FRAMES * 16
    assert torch.equal(shown.features[0], patches[kept[0, 0]])


def test_trim_on_entries_of_nest_sees_one_row_of_ranks(nest: TokenStore, space: JointSpace) -> None:
    """A share of the ranks and one mean; anchors and positions are those of the clip."""
    entry = nest.read(NAMES[0])
    select = Selection(SelectConfig(text_reducer="trim(ratio=0.25,score=cosine)"), nest.spec, space)
    shown = select._chosen(entry, "is there a red circle ?")
    assert len(shown.features) == 504 // 4 + 1
    assert set(shown.anchor.tolist()) - {-1} <= set(entry.anchor.tolist())
    where = {int(anchor): place.tolist() for anchor, place in zip(entry.anchor, entry.position, strict=True)}
    found = zip(shown.anchor.tolist(), shown.position.tolist(), strict=True)
    assert all(place == where[anchor] for anchor, place in found if anchor >= 0)


def test_original_positions_are_those_of_the_unreduced_prompt(whole: TokenStore, nest: TokenStore) -> None:
    """Unreduced they count up; of a cut, CLS rows lie 65 apart and patches where they were."""
    full = show(whole, positions="original")
    assert full.positions.tolist() == list(range(FRAMES * 65))
    cut = show(nest, budget=64, positions="original")
    assert cut.span == FRAMES * 65
    entry = Selection(SelectConfig(budget=64), nest.spec)._chosen(nest.read(NAMES[0]), "")
    rows = zip(entry.frame.tolist(), entry.anchor.tolist(), entry.kind.tolist(), strict=True)
    want = [65 * frame if kind == CLS else anchor // 64 * 65 + 1 + anchor % 64 for frame, anchor, kind in rows]
    assert cut.positions.tolist() == want


def test_int8_takes_half_the_bytes_and_hardly_moves_a_value(videos: Path, whole: TokenStore, tmp_path: Path) -> None:
    """Each element within half a step of its row."""
    small = encoded(videos, tmp_path, "none", dtype="int8")
    fine, coarse = whole.read(NAMES[0]), small.read(NAMES[0])
    step = np.abs(fine.features.astype(np.float32)).max(1, keepdims=True) / 127
    gap = np.abs(fine.features.astype(np.float32) - coarse.features.astype(np.float32))
    assert (gap <= 0.51 * step + 2e-3).all()
    held = [store.index.get(NAMES[0])["payload_bytes"] for store in (small, whole)]
    assert held[0] / held[1] <= 0.52


def test_stored_tokens_come_back_as_the_reducer_gave_them(nest: TokenStore, videos: Path) -> None:
    """Order and owners survive the way through Parquet."""
    entry: Entry = nest.read(NAMES[2])
    decode = Decode(DecodeConfig(), 64)
    with decode:
        file = sorted((videos / "videos").glob("*.mp4"))[2]
        clip = decode(pa.Table.from_pylist([{**corpus(NAMES[2]).to_pylist()[0], "uri": str(file)}])).to_pylist()[0]
    stage = Encode(EncodeConfig(model=SHAPES, reducer="nest", device="cpu"))
    frames = frames_of([clip["frames"]], stage.tower.side_px)[0]
    reducer = parse("nest")
    made = reducer.reduce(stage.tower(frames, reducer.needs, torch.tensor([0, len(frames)])))
    back = stored_tokens(entry)
    assert made.order is not None
    assert back.order is not None
    for name in ("rank", "parent", "link", "weight", "gain"):
        assert torch.equal(getattr(back.order, name), getattr(made.order, name)), name
    assert back.owner is not None
    assert torch.equal(back.owner.int(), made.owner)
