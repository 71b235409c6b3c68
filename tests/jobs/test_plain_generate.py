"""Encode and answer, from files to words, against the transformers way: processor, whole model, one `generate` per question."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, VideoLlavaForConditionalGeneration
from transformers.models.video_llava.image_processing_video_llava import VideoLlavaImageProcessor

from pipeline.decode.sampling import frame_indices
from pipeline.models.prompts import PromptTemplate
from tests.command import ROOT, framefold
from tests.frames.test_kinds import B_FRAMES, HEVC, MPEG4, OPEN
from tests.frames.writing import Coding, sequential, write

MODEL = ROOT / "pipeline" / "synthetic" / "checkpoint"
CODINGS = {"avi": B_FRAMES, "ts": B_FRAMES, "mp4": OPEN, "mkv": MPEG4, "mov": HEVC}
"""Kinds of file whose frames a decoder by index gets wrong."""
QUESTIONS = [
    "what color is the ring",
    "how many objects are in the video",
    "which way does the red circle move",
    "is there a purple ring in the video",
    "what disappears from the video",
]
NEW = 8


@torch.inference_mode()
def plain(path: Path, questions: list[str]) -> list[str]:
    """Return answers to one video, by transformers alone, in float32."""
    model = VideoLlavaForConditionalGeneration.from_pretrained(MODEL, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    processor = VideoLlavaImageProcessor.from_pretrained(MODEL)
    frames = sequential(path)
    clip = [frames[index] for index in frame_indices(len(frames), 8)]
    made = [processor.preprocess(images=frame, return_tensors="pt", input_data_format="channels_last") for frame in clip]
    pixels = torch.cat([one["pixel_values_images"] for one in made])[None]
    side, patch = pixels.shape[-1], model.config.vision_config.patch_size
    tokens = len(clip) * ((side // patch) ** 2 + 1)
    said = []
    for question in questions:
        text = PromptTemplate().text(question).replace("<video>", "<video>" * tokens)
        given = tokenizer(text, return_tensors="pt")
        never = [model.config.video_token_id, model.config.image_token_id]
        out = model.generate(
            **{name: given[name] for name in ("input_ids", "attention_mask")},
            pixel_values_videos=pixels,
            do_sample=False,
            max_new_tokens=NEW,
            suppress_tokens=[token for token in never if token is not None],
        )
        said.append(tokenizer.decode(out[0, given["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    return said


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], dict[tuple[str, str], str]]:
    """Files of several kinds, and the product's answers by video and question."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "videos").mkdir()
    paths = {}
    for number, (suffix, coding) in enumerate(CODINGS.items()):
        size = {"width": 128, "height": 96, "first": 100 * number, "seed": number}
        paths[suffix] = write(folder / "videos" / f"{suffix}.{suffix}", 70, Coding(**{**vars(coding), **size}))
    store, common = str(folder / "store"), ["--model", str(MODEL), "--runner", "local"]
    encode = ["--store", store, *common, "--compute-dtype", "float32", "--reducer", "none"]
    ran = framefold("encode", str(folder / "videos"), *encode)
    assert ran.returncode == 0, ran.stderr
    rows = [{"video_id": suffix, "question": question} for suffix in CODINGS for question in QUESTIONS]
    (folder / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = folder / "out"
    flags = ["--store", store, "--out", str(out), *common, "--dtype", "float32", "--dataset", "plain"]
    flags += ["--max-new-tokens", str(NEW)]
    ran = framefold("answer", str(folder / "q.jsonl"), *flags)
    assert ran.returncode == 0, ran.stderr
    lines = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    return paths, {(line["video_id"], line["question"]): line["prediction"] for line in lines}


@pytest.mark.parametrize("suffix", CODINGS)
def test_answers_equal_plain_generate_on_pixels_of_the_processor(
    suffix: str, answered: tuple[dict[str, Path], dict[tuple[str, str], str]]
) -> None:
    """Word for word in float32, for files of every kind. The store holds float16, which changes no answer here."""
    paths, ours = answered
    assert [ours[suffix, question] for question in QUESTIONS] == plain(paths[suffix], QUESTIONS)


def test_answers_of_different_videos_differ(answered: tuple[dict[str, Path], dict[tuple[str, str], str]]) -> None:
    """So the equality is not that of constant answers."""
    assert len(set(answered[1].values())) > 3
    assert np.mean([len(text) for text in answered[1].values()]) > 1
