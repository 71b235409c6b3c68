"""Answers per second: the loop of the transformers documentation, full tokens cached, reduced tokens without reuse, and ours.

One run, the same random weights, videos and questions. The documentation's loop decodes the video and runs tower and language
model for every question; its slow image processor is replaced by ours, which favours it.
"""

import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import torch
from torch import Tensor
from transformers import VideoLlavaForConditionalGeneration
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from jobs import shapes
from jobs.bench.geometry import FRAMES, LANGUAGE, PRESETS, VISION, write_checkpoint
from jobs.bench.machine import describe, peak_bytes, reset_peak, say
from jobs.bench.roofline import read_flops, tower_flops
from jobs.launch import Report, launch
from pipeline.answer import Answer, AnswerConfig
from pipeline.answers import QUESTIONS_ASKED
from pipeline.checkpoint import Checkpoint
from pipeline.corpus import read_corpus
from pipeline.decode import Decode, DecodeConfig
from pipeline.encode import Encode, EncodeConfig, encode_spec
from pipeline.engine import TransformersEngine, VideoQuestions
from pipeline.errors import ConfigError
from pipeline.local import encode_units
from pipeline.prompts import PromptTemplate
from pipeline.shapes.model import WORDS
from pipeline.store import Commit, TokenStore


@dataclass(frozen=True, kw_only=True)
class AnswerBench:
    """Measure answers per second from an encoded store, beside what a user would otherwise run."""

    preset: Literal["demo", "vit-l+llama-1.1b", "vit-l+llama-7b"] = "demo"
    videos: int = 2
    questions: int = 10
    """About each video."""
    baseline_questions: int = 2
    """Questions that the documentation's loop and full cached tokens answer, each; they take long and all take the same."""
    reducer: str = "nest(keep=256,superset=256)"
    """What the reduced tokens are made with."""
    max_new_tokens: int = 8
    """Tokens of an answer; random weights seldom end one earlier."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        if min(self.videos, self.questions, self.baseline_questions, self.max_new_tokens) < 1:
            raise ConfigError("videos, questions, baseline_questions and max_new_tokens must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to answer, measured."""

    name: str
    answers: int
    seconds: float
    peak_bytes: int
    flops: float
    """Per answer, counted."""

    @property
    def each_s(self) -> float:
        """Return seconds per answer."""
        return self.seconds / self.answers


class Setting:
    """What all ways share: weights, videos, questions, two stores."""

    def __init__(self, job: AnswerBench, folder: Path) -> None:
        self.job = job
        self.device = "cuda" if job.device == "auto" and torch.cuda.is_available() else job.device.replace("auto", "cpu")
        self.model_path, self.store = folder / "model", str(folder / "store")
        write_checkpoint(job.preset, self.model_path, getattr(torch, job.dtype))
        shapes.run(shapes.ShapesJob(out=str(folder / "corpus"), videos=job.videos))
        self.corpus = read_corpus(str(folder / "corpus" / "videos"))
        draw = random.Random(0)
        self.questions = [" ".join(draw.choices(WORDS[3:], k=8)) + " ?" for _ in range(job.questions)]
        self.encode_s: dict[str, float] = {}
        self.stores = {reducer: self.encoded(reducer) for reducer in ("none", job.reducer)}
        loaded = VideoLlavaForConditionalGeneration.from_pretrained(self.model_path, dtype=getattr(torch, job.dtype))
        self.model: Any = loaded.to(self.device).eval()
        self.engine = TransformersEngine(
            self.model, _tokenizer(self.model_path), PromptTemplate(), max_new_tokens=job.max_new_tokens
        )

    def encoded(self, reducer: str) -> TokenStore:
        """Encode the videos; seconds per video, models loaded, go to `encode_s`."""
        config = EncodeConfig(model=str(self.model_path), reducer=reducer, device=self.device, compute_dtype=self.job.dtype)
        checkpoint = Checkpoint.open(str(self.model_path))
        spec, side_px = encode_spec(config, DecodeConfig(), checkpoint), checkpoint.preprocessing().side_px
        encode, commit = Encode(config), Commit(self.store, spec)
        with Decode(DecodeConfig(), side_px) as warm:
            encode.encode([warm(self.corpus.slice(0, 1))["frames"][0].as_py()])
        began = time.perf_counter()
        for _ in encode_units(self.corpus, lambda: Decode(DecodeConfig(), side_px), encode, commit):
            pass
        self.encode_s[reducer] = (time.perf_counter() - began) / self.corpus.num_rows
        commit.store.refresh()
        return commit.store

    def features(self, reducer: str) -> Tensor:
        """Return the stored tokens of the first video."""
        store = self.stores[reducer]
        return torch.from_numpy(store.read(store.ids()[0]).features.copy())


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def run(job: AnswerBench) -> Report:
    """Print the table."""
    disable_progress_bar()
    set_verbosity_error()
    say(describe())
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(job, Path(folder))
        full, few = len(setting.features("none")), len(setting.features(job.reducer))
        say(
            f"{job.preset}, {job.dtype}, {setting.device}, {torch.get_num_threads()} threads; {job.videos} videos, "
            f"{job.questions} questions each, answers of {job.max_new_tokens} tokens; {full} tokens, reduced to {few}"
        )
        arms = [
            _documentation(setting),
            _one_by_one(setting, "none", "full tokens cached, one prompt a question", job.baseline_questions),
            _one_by_one(setting, job.reducer, "reduced tokens cached, one prompt a question", job.questions),
            _ours(setting),
        ]
        _print(setting, arms)
        return _summary(setting, arms)


def _measured(name: str, answers: int, flops: float, work: Callable[[], object]) -> Arm:
    reset_peak()
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Arm(name=name, answers=answers, seconds=time.perf_counter() - began, peak_bytes=peak_bytes(), flops=flops)


def _documentation(setting: Setting) -> Arm:
    """Decode, tower over all frames, one generate per question, nothing kept."""
    job, count = setting.job, setting.job.baseline_questions
    vision, language = (table[name] for table, name in zip((VISION, LANGUAGE), PRESETS[job.preset], strict=True))
    tokens = len(setting.features("none"))
    flops = tower_flops(vision, FRAMES, vision["num_hidden_layers"]) + _language_flops(setting, tokens, language)
    with Decode(DecodeConfig(), vision["image_size"]) as decode:
        _generate(setting, decode, setting.questions[0])  # warm up
        asked = setting.questions[:count]
        return _measured("documentation's loop", len(asked), flops, lambda: _each(asked, partial(_generate, setting, decode)))


def _each(questions: Sequence[str], ask: Callable[[str], None]) -> None:
    for question in questions:
        ask(question)


@torch.inference_mode()
def _generate(setting: Setting, decode: Decode, question: str) -> None:
    clip = decode(setting.corpus.slice(0, 1))
    side = VISION[PRESETS[setting.job.preset][0]]["image_size"]
    pixels = torch.frombuffer(bytearray(clip["frames"][0].as_py()), dtype=torch.uint8).view(1, FRAMES, side, side, 3)
    split = setting.engine.split(question)
    video = [setting.engine.video_id] * len(setting.features("none"))
    ids = torch.tensor([[*split.prefix, *video, *split.suffix]], device=setting.device)
    shown = ((pixels.float() / 255 - 0.45) / 0.27).permute(0, 1, 4, 2, 3)
    setting.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values_videos=shown.to(setting.device, setting.model.dtype),
        do_sample=False,
        max_new_tokens=setting.job.max_new_tokens,
    )


def _one_by_one(setting: Setting, reducer: str, name: str, count: int) -> Arm:
    """Read tokens from the store, then the whole prompt for each question."""
    job = setting.job
    flops = _language_flops(setting, len(setting.features(reducer)), LANGUAGE[PRESETS[job.preset][1]])

    def ask(text: str) -> None:
        setting.engine.answer([VideoQuestions(features=setting.features(reducer), questions=[text])])

    ask(setting.questions[0])
    asked = setting.questions[:count]
    return _measured(name, len(asked), flops, lambda: _each(asked, ask))


def _ours(setting: Setting) -> Arm:
    """The answer stage over all videos and questions, store reads included."""
    job, store = setting.job, setting.stores[setting.job.reducer]
    stage = Answer(AnswerConfig(model=str(setting.model_path), max_new_tokens=job.max_new_tokens), setting.store,
                   store.fingerprint, engine=setting.engine)  # fmt: skip
    payloads = store.payloads()
    rows = [
        {"question_id": f"{name}:{at}", "video_id": name, "store_id": name, "question": text, "payload_sha256": payload}
        for name, payload in payloads.items()
        for at, text in enumerate(setting.questions)
    ]
    unit = pa.Table.from_pylist(rows, schema=QUESTIONS_ASKED)
    stage(unit.slice(0, 1))
    tokens, language = len(setting.features(job.reducer)), LANGUAGE[PRESETS[job.preset][1]]
    text = len(setting.engine.split(setting.questions[0]).suffix)
    once = read_flops(language, tokens) / job.questions
    flops = once + read_flops(language, text + job.max_new_tokens, tokens)
    return _measured("framefold answer", unit.num_rows, flops, lambda: stage(unit))


def _language_flops(setting: Setting, tokens: int, language: dict[str, int]) -> float:
    split = setting.engine.split(setting.questions[0])
    return read_flops(language, len(split.prefix) + tokens + len(split.suffix) + setting.job.max_new_tokens)


def _print(setting: Setting, arms: Sequence[Arm]) -> None:
    base = arms[0].each_s
    say(f"{'':<46} {'answers/s':>10} {'ratio':>8} {'GFLOP/answer':>13} {'peak memory GB':>15}")
    for arm in arms:
        shown = f"{1 / arm.each_s:>10.3f} {base / arm.each_s:>7.1f}x {arm.flops / 1e9:>13.1f} {arm.peak_bytes / 1e9:>15.2f}"
        say(f"{arm.name:<46} {shown}")
    job, encode_s = setting.job, setting.encode_s[setting.job.reducer]
    whole = encode_s / job.questions + arms[-1].each_s
    say(f"{'framefold encode and answer together':<46} {1 / whole:>10.3f} {base / whole:>7.1f}x")
    held = {reducer: store.stats()["bytes_per_video"] for reducer, store in setting.stores.items()}
    say(f"bytes per video: {held['none']} full, {held[job.reducer]} reduced; encoding {encode_s:.2f} s per video")
    say(f"break-even against the documentation's loop: {break_even(setting, arms):.2f} questions per video")


def break_even(setting: Setting, arms: Sequence[Arm]) -> float:
    """Return how many questions per video pay for encoding it."""
    return setting.encode_s[setting.job.reducer] / max(arms[0].each_s - arms[-1].each_s, 1e-9)


def _summary(setting: Setting, arms: Sequence[Arm]) -> Report:
    measured = {arm.name: {"answers_per_s": 1 / arm.each_s, "ratio": arms[0].each_s / arm.each_s} for arm in arms}
    return {"bench": "answer", "preset": setting.job.preset, "arms": measured, "break_even": break_even(setting, arms)}


def main(args: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    return launch(AnswerBench, run, "framefold bench answer", args)


if __name__ == "__main__":
    sys.exit(main())
