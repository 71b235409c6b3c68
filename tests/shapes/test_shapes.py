"""The generated world: questions have the right answers, pixels show the scene, files decode to it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.corpus.listing import read_corpus
from pipeline.decode.config import DecodeConfig
from pipeline.decode.stage import Decode
from pipeline.questions.datasets import join_videos, read_questions
from pipeline.synthetic.corpus import write_corpus
from pipeline.synthetic.model import UNKNOWN, build_model, build_text_tower, build_tokenizer
from pipeline.synthetic.pool import TIMES, make_pool
from pipeline.synthetic.questions import TYPES, questions
from pipeline.synthetic.train_language import pack, packed_logits, train_language
from pipeline.synthetic.train_tower import TowerHeads, train_tower
from pipeline.synthetic.world import COLOURS, MOTIONS, SHAPES, Scene, Thing, draw_scene, patch_owners, render

CHECKPOINT = Path(__file__).parents[2] / "pipeline" / "synthetic" / "checkpoint"


def thing(colour: str, shape: str, x: float, y: float, motion: str = "still", **more: float) -> Thing:
    travel = 0.0 if motion == "still" else 20.0
    return Thing(colour=colour, shape=shape, radius=6, start=(x, y), motion=motion, travel=travel, **more)


def test_a_scene_by_hand_has_the_answers_a_person_would_give() -> None:
    """One still red circle upper left, one blue square that moves right and appears half-way."""
    still, moving = thing("red", "circle", 12, 14), thing("blue", "square", 30, 40, "right", appears=0.5)
    asked = {q.text: q.answer for q in questions(Scene(seed=5, things=(still, moving)))}
    assert asked["which way does the red circle move"] == "it stays"
    assert asked["which way does the blue square move"] == "right"
    assert asked["what color is the circle"] == "red"
    assert asked["what is the shape of the blue object"] == "square"
    assert asked["is the red circle in the left or right half"] == "left"
    assert asked["is the red circle in the top or bottom half"] == "top"
    assert asked["is the red circle on the left or right of the blue square"] == "left"
    assert asked["what appears in the video"] == "blue square"
    assert asked["how many objects are in the video"] == "2"
    assert asked["is there a red circle in the video"] == "yes"
    assert asked["is there a red square in the video"] == "no"


@pytest.mark.parametrize("seed", range(0, 400, 37))
def test_pixels_show_what_the_scene_says(seed: int) -> None:
    """Where a mask says a patch shows a thing, the patch has its colour; each thing moves as it should."""
    scene = draw_scene(seed)
    frames = render(scene, TIMES).astype(int)
    owners = patch_owners(scene, TIMES).reshape(8, 8, 8)
    pixels = frames.reshape(8, 8, 8, 8, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(8, 8, 8, 64, 3)
    for number, one in enumerate(scene.things, start=1):
        shown = owners == number
        assert shown.any()
        near = np.abs(pixels[shown] - COLOURS[one.colour]).max(-1) < 30
        assert (near.sum(1) >= 5).mean() > 0.9
        across, down = MOTIONS[one.motion]
        rows = [np.argwhere(frame).mean(0) for frame in shown if frame.any()]
        moved = rows[-1] - rows[0]
        if one.appears == 0 and one.disappears > 1:
            patches = one.travel / 8
            assert moved == pytest.approx([down * patches, across * patches], abs=1.0)


def test_every_type_occurs_and_every_question_has_one_answer() -> None:
    """No text twice in a clip; yes and no are balanced."""
    every = [questions(draw_scene(seed)) for seed in range(200)]
    assert {q.type for some in every for q in some} == set(TYPES)
    assert all(len({q.text for q in some}) == len(some) for some in every)
    answers = [q.answer for some in every for q in some if q.type == 3]
    assert answers.count("yes") == answers.count("no")


def test_the_tokeniser_knows_every_word_that_is_asked_or_answered() -> None:
    """And the video is one token."""
    tokenizer = build_tokenizer()
    for seed in range(150):
        for question in questions(draw_scene(seed)):
            for text in (f"USER: <video>\n{question.text}? ASSISTANT:", question.answer):
                ids = tokenizer(text).input_ids
                assert UNKNOWN not in ids, text
    ids = tokenizer(f"USER: <video>\nis there a {next(iter(COLOURS))} {SHAPES[0]}").input_ids
    assert ids.count(tokenizer.convert_tokens_to_ids("<video>")) == 1


def test_a_corpus_on_disk_is_real_video_with_questions_in_the_layout_of_activitynet(tmp_path: Path) -> None:
    """H.264 files that the decode stage reads as the scene was drawn; questions join them."""
    count = write_corpus(tmp_path, range(3), side_px=128)
    videos = read_corpus(str(tmp_path / "videos"))
    with Decode(DecodeConfig(), side_px=64) as stage:
        rows = stage(videos).to_pylist()
    for seed, row in enumerate(rows):
        assert (row["error"], row["decoder"]) == (None, "pyav")
        ours = np.frombuffer(row["frames"], np.uint8).reshape(8, 64, 64, 3).astype(int)
        drawn = render(draw_scene(seed), TIMES).astype(int)
        assert np.abs(ours - drawn).mean() < 8
    asked = read_questions(str(tmp_path / "test_q.json"), "activitynet-qa")
    assert asked.num_rows == count == len(json.loads((tmp_path / "test_a.json").read_text()))
    assert join_videos(asked, videos["video_id"].to_pylist())["store_id"].null_count == 0
    assert asked["answer"].null_count == 0


def test_held_out_and_training_clips_differ() -> None:
    """Disjoint seeds are disjoint scenes."""
    assert draw_scene(3) != draw_scene(1_000_003)


def test_packed_questions_are_answered_as_if_each_were_alone() -> None:
    """A question sees the prefix and itself: the mask and the positions of training are those of inference."""
    torch.manual_seed(0)
    model = build_model().eval()
    pool = make_pool(range(1), workers=1)
    visual = torch.randn(1, 20, 128)
    asked = pool.asked[0][:4]
    with torch.inference_mode():
        together = packed_logits(model, visual, pack([asked]))
        at = 0
        for one in asked:
            alone = packed_logits(model, visual, pack([[one]]))
            torch.testing.assert_close(together[:, at : at + alone.shape[1]], alone, atol=1e-4, rtol=1e-4)
            at += alone.shape[1]


def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    """Both stages: stopped after two steps of four and started again, the same weights come out."""
    pool = make_pool(range(1_000_000, 1_000_004), workers=1)
    assert _train(pool, tmp_path / "whole", stops=()) == pytest.approx(_train(pool, tmp_path / "parts", stops=(2,)), rel=1e-5)


class StoppedError(Exception):
    """As if the machine went away."""


def _train(pool, folder: Path, stops: tuple[int, ...]) -> list[float]:
    import pipeline.synthetic.resume as resume

    folder.mkdir()
    sums = []
    for stop in (*stops, None):
        torch.manual_seed(1)
        model, text, heads = build_model(), build_text_tower(), TowerHeads()
        descend = resume.Run.descend

        def until(run, loss, stop=stop, descend=descend):
            if stop is not None and run.step == stop:
                run.save()
                raise StoppedError
            descend(run, loss)

        resume.Run.descend = until  # type: ignore[method-assign]
        options = {"steps": 4, "rate": 1e-3, "seed": 0, "log": lambda _: None}
        rows = torch.randn(4, 8, 65, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
        try:
            for job in (
                lambda m=model, t=text, h=heads, o=options: train_tower(
                    m.model.video_tower, t, h, pool, batch_frames=2, state=folder / "tower.safetensors", **o
                ),
                lambda m=model, r=rows, o=options: train_language(
                    m, r, pool, state=folder / "language.safetensors", tokens_per_step=100, **o
                ),
            ):
                try:
                    job()
                except StoppedError:
                    continue
        finally:
            resume.Run.descend = descend  # type: ignore[method-assign]
        sums = [p.double().abs().sum().item() for p in (*text.parameters(), *model.model.language_model.parameters())]
    return sums


@pytest.mark.skipif(not (CHECKPOINT / "model.safetensors").exists(), reason="the bundled model is not in this checkout")
def test_the_bundled_checkpoint_is_small_and_has_a_card() -> None:
    """Safetensors of at most 20 MB in all, and a card with the accuracy of each type."""
    assert sum(path.stat().st_size for path in CHECKPOINT.rglob("*") if path.is_file()) < 20e6
    assert not list(CHECKPOINT.rglob("*.bin"))
    card = (CHECKPOINT / "README.md").read_text()
    assert all(name in card for name in TYPES.values())
