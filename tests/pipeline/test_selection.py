"""Stored once, shown as asked: budgets, coverage and questions are served from the store alone."""

import gc
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from jobs import answer as answer_job
from jobs.answer import AnswerJob
from jobs.cluster import ClusterConfig
from pipeline.answer import Answer, AnswerConfig, corpus_cut, llm_config
from pipeline.answers import QUESTIONS_ASKED
from pipeline.checkpoint import Checkpoint
from pipeline.decode import Decode, DecodeConfig
from pipeline.encode import Encode, EncodeConfig, encode_spec
from pipeline.entries import Entry
from pipeline.errors import ConfigError
from pipeline.fingerprint import fingerprint
from pipeline.joint import JointSpace
from pipeline.local import encode_units
from pipeline.selection import SelectConfig, Selection, check_selection, stored_tokens
from pipeline.store import Commit, TokenStore
from reducers.base import CLS, KEPT
from reducers.nest_cut import StoredNest
from reducers.registry import parse
from tests.tables import corpus

ROOT = Path(__file__).parents[2]
VIDEOS = ROOT / "tests" / "videos"
SHAPES = str(ROOT / "pipeline" / "shapes" / "checkpoint")
NAMES = ("shapes_0", "shapes_1", "shapes_2")
FRAMES = 8


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from jobs.shapes import ShapesJob, run

    folder = tmp_path_factory.mktemp("selection") / "corpus"
    run(ShapesJob(out=str(folder), videos=3))
    return folder


def encoded(videos: Path, store: Path, reducer: str, **options: Any) -> TokenStore:
    """A store of the three clips, by the real stages."""
    config = EncodeConfig(model=SHAPES, reducer=reducer, device="cpu", **options)
    decode = DecodeConfig()
    files = sorted((videos / "videos").glob("*.mp4"))
    rows = corpus(*NAMES).to_pylist()
    todo = pa.Table.from_pylist([{**row, "uri": str(file)} for row, file in zip(rows, files, strict=True)])
    spec = encode_spec(config, decode, Checkpoint.open(SHAPES))
    for manifest in encode_units(todo, lambda: Decode(decode, 64), Encode(config), Commit(str(store), spec)):
        assert set(manifest["status"].to_pylist()) == {"committed"}
    return TokenStore.open(str(store), fingerprint(spec))


@pytest.fixture(scope="module")
def nest(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return encoded(videos, tmp_path_factory.mktemp("nest"), "nest", clip_space=True)


@pytest.fixture(scope="module")
def whole(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return encoded(videos, tmp_path_factory.mktemp("whole"), "none", clip_space=True)


@pytest.fixture(scope="module")
def space() -> JointSpace:
    return JointSpace.open(Checkpoint.open(SHAPES))


def show(store: TokenStore, question: str = "", space: JointSpace | None = None, cut: float | None = None, **asked: Any) -> Any:
    return Selection(SelectConfig(**asked), store.spec, space, cut).show(store.read(NAMES[0]), question)


def test_everything_is_shown_unless_something_else_is_asked_for(nest: TokenStore) -> None:
    """The stored rows as they are."""
    entry = nest.read(NAMES[0])
    assert torch.equal(show(nest).features, torch.from_numpy(np.array(entry.features)))
    assert len(entry.features) == 512


@pytest.mark.parametrize("budget", [1, 15, 16, 32, 128, 300, 512, 9999])
def test_a_cut_is_what_encoding_to_that_budget_gives(
    nest: TokenStore, videos: Path, tmp_path: Path, budget: int
) -> None:
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


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"budget": 64}, "only entries of nest"),
        ({"coverage": 0.9}, "only entries of nest"),
        ({"text_reducer": "visionzip"}, "does not read the question"),
        ({"text_reducer": "trim(ratio=0)"}, "ratio"),
    ],
)
def test_what_a_store_cannot_serve_is_refused_before_it_is_read(whole: TokenStore, asked: dict[str, Any], said: str) -> None:
    """With a sentence that says what to do."""
    with pytest.raises(ConfigError, match=said):
        check_selection(SelectConfig(**asked), whole.spec, None)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"budget": 64, "coverage": 0.9}, "one of budget"),
        ({"budget": 0}, "at least 1"),
        ({"coverage": 1.5}, "at most 1"),
        ({"by_question": "like"}, "pass --budget"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SelectConfig(**asked)


def test_vectors_of_another_projection_are_refused(nest: TokenStore, space: JointSpace, tmp_path: Path) -> None:
    """A text tower that was not trained with this tower would choose at random."""
    other = JointSpace(space.folder, space.projection_PD + 1, Path(SHAPES))
    with pytest.raises(ConfigError, match="another visual projection"):
        check_selection(SelectConfig(budget=8, by_question="like"), nest.spec, other)
    plain = {**nest.spec, "clip_space": None}
    with pytest.raises(ConfigError, match="--clip-space True"):
        check_selection(SelectConfig(budget=8, by_question="like"), plain, space)
    shutil.copytree(SHAPES, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "text_tower")
    with pytest.raises(ConfigError, match="--text-tower"):
        JointSpace.open(Checkpoint.open(str(tmp_path / "model")))


def test_a_text_tower_is_never_given_the_ids_of_a_language_model(tmp_path: Path) -> None:
    """Its own tokeniser, or inside a checkpoint one with as many ids: another numbers other words, and nothing fails."""
    shutil.copytree(SHAPES, tmp_path / "model")
    inside, alone = tmp_path / "model" / "text_tower", tmp_path / "clip"
    shutil.copytree(inside, alone)
    checkpoint = Checkpoint.open(str(tmp_path / "model"))
    assert JointSpace.open(checkpoint).embed(["red ring"]).shape == (1, 64)
    with pytest.raises(ConfigError, match=r"clip: expected the tokeniser of the text tower, tokenizer\.json or vocab\.json"):
        JointSpace.open(checkpoint, str(alone))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(SHAPES) / name, alone)
    found = [JointSpace.open(checkpoint, given).embed(["red ring"]) for given in (None, str(alone))]
    assert torch.equal(*found)
    config = json.loads((inside / "config.json").read_text())
    for ids in ({"vocab_size": 49408}, {}):  # CLIP's own number, named or by default
        (inside / "config.json").write_text(json.dumps({name: config[name] for name in config if name != "vocab_size"} | ids))
        with pytest.raises(ConfigError, match="which knows 49408 ids: the checkpoint's is for 75"):
            JointSpace.open(checkpoint)
    (inside / "config.json").write_text("[")
    with pytest.raises(ConfigError, match=r"expected the config\.json of a CLIP text tower"):
        JointSpace.open(checkpoint)


def test_every_file_of_the_tokeniser_is_in_the_digest(tmp_path: Path) -> None:
    """CLIP's own tokeniser is vocab.json and merges.txt: with other merges a question has other ids."""
    shutil.copytree(SHAPES, tmp_path / "model")
    folder = tmp_path / "model" / "text_tower"
    digests = []
    for name, content in (("vocab.json", "{}"), ("merges.txt", "a b"), ("merges.txt", "b a")):
        (folder / name).write_text(content)
        digests.append(JointSpace.open(Checkpoint.open(str(tmp_path / "model"))).text_digest())
    assert len(set(digests)) == 3


def test_what_ends_an_answer_is_in_its_fingerprint() -> None:
    """Without generation_config.json it is the outer EOS of config.json; one that says the same changes no fingerprint."""
    config = {"text_config": {"eos_token_id": 2}}
    assert llm_config({**config, "eos_token_id": 2}) == llm_config(config) != llm_config({**config, "eos_token_id": 7})


def test_answers_do_not_lie_among_the_files_of_the_store(nest: TokenStore, tmp_path: Path) -> None:
    """Their spec would be one more that the store has to choose from, and the next command would not know which."""
    (tmp_path / "q.jsonl").write_text('{"video_id": "shapes_0", "question": "what ?"}')
    given = {"questions": str(tmp_path / "q.jsonl"), "store": nest.root, "cluster": ClusterConfig(runner="local")}
    job = AnswerJob(**given, out=f"{nest.root}/", answer=AnswerConfig(model=SHAPES))
    with pytest.raises(ConfigError, match="expected another folder"):
        answer_job.run(job)
    assert TokenStore.open(nest.root).fingerprint == nest.fingerprint


def test_turns_that_cannot_be_asked_are_refused_before_the_first_answer(nest: TokenStore, tmp_path: Path) -> None:
    """Not when their unit comes, after all others were answered."""
    (tmp_path / "q.csv").write_text("video_id,question,turn\nshapes_0,what ?,\nshapes_1,what ?,1\n")
    given = {"questions": str(tmp_path / "q.csv"), "store": nest.root, "cluster": ClusterConfig(runner="local")}
    config = AnswerConfig(model=SHAPES, max_new_tokens=2, select=SelectConfig(budget=16, by_question="like"))
    with pytest.raises(ConfigError, match="the same tokens all along"):
        answer_job.run(AnswerJob(**given, out=str(tmp_path / "out"), answer=config, videos_per_unit=1))
    assert not (tmp_path / "out").exists()


def test_one_store_answers_at_every_budget_when_the_videos_are_gone(videos: Path, tmp_path: Path) -> None:
    """Each setting has answers of its own; none opens a video; asking again does nothing."""
    mine = tmp_path / "corpus"
    shutil.copytree(videos, mine)
    store = encoded(mine, tmp_path / "store", "nest", clip_space=True)
    questions = mine / "q.jsonl"
    lines = [f'{{"video_id": "{name}", "question": "what is the color of the object ?"}}\n' for name in NAMES]
    questions.write_text("".join(lines))
    shutil.rmtree(mine / "videos")

    def answered(**select: Any) -> dict[str, Any]:
        config = AnswerConfig(model=SHAPES, max_new_tokens=4, select=SelectConfig(**select))
        cluster, out = ClusterConfig(runner="local"), str(tmp_path / "answers")
        job = AnswerJob(questions=str(questions), store=str(tmp_path / "store"), out=out, answer=config, cluster=cluster)
        return answer_job.run(job)

    settings: list[dict[str, Any]] = [
        {}, {"budget": 32}, {"budget": 128}, {"budget": 128, "positions": "original"}, {"coverage": 0.9},
        {"corpus_budget": 128}, {"budget": 32, "by_question": "like"},
        {"budget": 32, "by_question": "unlike"}, {"text_reducer": "trim(ratio=0.25)"},
    ]  # fmt: skip
    reports = [answered(**select) for select in settings]
    assert all(found["statuses"] == {"ok": 3} for found in reports)
    assert len({found["answers_fingerprint"] for found in reports}) == len(settings)
    assert "answered" not in answered(budget=32)["this_run"]
    assert store.payloads() == TokenStore.open(str(tmp_path / "store")).payloads()


def test_each_question_sees_its_own_tokens(nest: TokenStore, space: JointSpace) -> None:
    """Asked together or alone, a question is answered the same way."""
    select = SelectConfig(budget=24, by_question="like")
    stage = Answer(AnswerConfig(model=SHAPES, max_new_tokens=4, select=select), nest.root, nest.fingerprint)
    asked = ["what is the color of the square ?", "how many objects are there ?", "which way does the ring move ?"]
    row = {"video_id": NAMES[0], "store_id": NAMES[0], "payload_sha256": nest.payloads()[NAMES[0]]}
    rows = [{**row, "question_id": str(at), "question": text} for at, text in enumerate(asked)]
    unit = pa.Table.from_pylist(rows, schema=QUESTIONS_ASKED)
    together = stage(unit).to_pylist()
    alone = [stage(unit.slice(at, 1)).to_pylist()[0] for at in range(3)]
    assert together == alone
    assert [row["visual_tokens"] for row in together] == [24, 24, 24]


def test_stored_tokens_come_back_as_the_reducer_gave_them(nest: TokenStore, videos: Path) -> None:
    """Order and owners survive the way through Parquet."""
    entry: Entry = nest.read(NAMES[2])
    decode = Decode(DecodeConfig(), 64)
    with decode:
        file = sorted((videos / "videos").glob("*.mp4"))[2]
        clip = decode(pa.Table.from_pylist([{**corpus(NAMES[2]).to_pylist()[0], "uri": str(file)}])).to_pylist()[0]
    stage = Encode(EncodeConfig(model=SHAPES, reducer="nest", device="cpu"))
    frames = stage._frames(clip["frames"])
    reducer = parse("nest")
    made = reducer.reduce(stage.tower(frames, reducer.needs, torch.tensor([0, len(frames)])))
    back = stored_tokens(entry)
    assert made.order is not None
    assert back.order is not None
    for name in ("rank", "parent", "link", "weight", "gain"):
        assert torch.equal(getattr(back.order, name), getattr(made.order, name)), name
    assert back.owner is not None
    assert torch.equal(back.owner.int(), made.owner)
