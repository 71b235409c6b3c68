"""Selection on the way to an answer: what cannot be served is refused, what can is answered without a video."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from jobs.commands import answer as answer_job
from jobs.commands.answer import AnswerJob
from jobs.runtime.cluster import ClusterConfig
from pipeline.answer.answer_store import QUESTIONS_ASKED
from pipeline.answer.stage import Answer, AnswerConfig, llm_config
from pipeline.answer.token_selection import SelectConfig, check_selection
from pipeline.errors import ConfigError
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.clip_space import JointSpace
from pipeline.store.token_store import TokenStore
from tests.selection.stored import NAMES, SHAPES, encoded


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
        ({"by_question": "like"}, "requires --budget"),
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
    with pytest.raises(ConfigError, match="--out must differ from --store"):
        answer_job.run(job)
    assert TokenStore.open(nest.root).fingerprint == nest.fingerprint


@pytest.mark.parametrize("runner", ["local", "ray"])
def test_a_tokeniser_that_cannot_ask_is_refused_before_anything_is_written(
    nest: TokenStore, tmp_path: Path, runner: str
) -> None:
    """On the driver: an engine that cannot be built would be started again and again. Another id, no file, half a file."""
    model = tmp_path / "model"
    shutil.copytree(SHAPES, model)
    (tmp_path / "q.csv").write_text("video_id,question\nshapes_0,what ?\n")
    given = {"questions": str(tmp_path / "q.csv"), "store": nest.root, "cluster": ClusterConfig(runner=runner)}
    job = AnswerJob(**given, out=str(tmp_path / "out"), answer=AnswerConfig(model=str(model)))
    file = model / "tokenizer.json"
    whole = file.read_text()
    for content, said in (
        (whole.replace("<video>", "<film>"), "the tokeniser gives <video> the id"),
        (None, "expected the files of a tokeniser"),
        (whole[:1000], "expected the files of a tokeniser"),
    ):
        file.unlink() if content is None else file.write_text(content)
        with pytest.raises(ConfigError, match=said):
            answer_job.run(job)
    assert not (tmp_path / "out").exists()


def test_turns_that_cannot_be_asked_are_refused_before_the_first_answer(nest: TokenStore, tmp_path: Path) -> None:
    """Not when their unit comes, after all others were answered."""
    (tmp_path / "q.csv").write_text("video_id,question,turn\nshapes_0,what ?,\nshapes_1,what ?,1\n")
    given = {"questions": str(tmp_path / "q.csv"), "store": nest.root, "cluster": ClusterConfig(runner="local")}
    config = AnswerConfig(model=SHAPES, max_new_tokens=2, select=SelectConfig(budget=16, by_question="like"))
    with pytest.raises(ConfigError, match=r"conversations .* cannot be combined with --by-question"):
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


def test_questions_about_other_videos_are_told_of(nest: TokenStore, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """All missing: perhaps the wrong store, or other names. One of each side is shown."""
    given = {"store": nest.root, "out": str(tmp_path / "out"), "cluster": ClusterConfig(runner="local")}
    for name, told in (("elsewhere", True), ("shapes_0", False)):
        (tmp_path / f"{name}.csv").write_text(f"video_id,question\n{name},what ?\nnobody,what ?\n")
        caplog.clear()
        answer_job.run(AnswerJob(**given, questions=str(tmp_path / f"{name}.csv"), answer=AnswerConfig(model=SHAPES)))
        assert ("no question is about a video of this store: elsewhere against shapes_0" in caplog.text) == told
