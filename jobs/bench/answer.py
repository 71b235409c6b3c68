"""Answers per second: the loop of the transformers documentation, full tokens cached, reduced tokens without reuse, and ours.

One run, the same random weights, videos and questions. The documentation's loop decodes the video and runs tower and language
model for every question; its slow image processor is replaced by ours, which favours it.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from jobs.bench.answer_setting import AnswerBench, Setting
from jobs.bench.geometry import FRAMES, LANGUAGE, PRESETS, VISION
from jobs.bench.machine import describe, peak_bytes, reset_peak, say
from jobs.bench.roofline import read_flops, tower_flops
from jobs.runtime.launch import Report, launch
from pipeline.decode.config import DecodeConfig
from pipeline.decode.stage import Decode
from pipeline.engines.transformers_engine import VideoQuestions
from pipeline.engines.vllm_config import installed_vllm
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.prompts import PromptTemplate

OURS = "framefold answer"


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


def run(job: AnswerBench) -> Report:
    """Print the table."""
    disable_progress_bar()
    set_verbosity_error()
    say(describe() + (f", vllm {installed_vllm()}" if "vllm" in job.measured else ""))
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
            *_ours(setting),
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


def _ours(setting: Setting) -> list[Arm]:
    """The answer stage over all videos and questions, store reads included, with each engine."""
    arms = [_with_transformers(setting)] if "transformers" in setting.job.measured else []
    return [*arms, *_with_vllm(setting)] if "vllm" in setting.job.measured else arms


def _with_transformers(setting: Setting) -> Arm:
    job = setting.job
    stage, unit = setting.stage(job.reducer, setting.engine), setting.unit(job.reducer)
    stage(unit.slice(0, 1))
    tokens, language = len(setting.features(job.reducer)), LANGUAGE[PRESETS[job.preset][1]]
    text = len(setting.engine.split(setting.questions[0]).suffix)
    once = read_flops(language, tokens) / job.questions
    flops = once + read_flops(language, text + job.max_new_tokens, tokens)
    return _measured(OURS, unit.num_rows, flops, lambda: stage(unit))


def _with_vllm(setting: Setting) -> list[Arm]:
    """The same stage with vLLM's prefix cache instead of ours, from both stores; its cache is empty when the clock starts."""
    from pipeline.engines.vllm_engine import VllmEngine

    job, language = setting.job, LANGUAGE[PRESETS[setting.job.preset][1]]
    setting.release()
    engine = VllmEngine(
        Checkpoint.open(str(setting.model_path)),
        PromptTemplate(),
        device=setting.device,
        dtype=job.dtype,
        max_new_tokens=job.max_new_tokens,
        exports=setting.folder,
    )
    arms = []
    for reducer, name in (("none", "full tokens cached, engine vllm"), (job.reducer, f"{OURS}, engine vllm")):
        stage, unit = setting.stage(reducer, engine), setting.unit(reducer)
        stage(unit.slice(0, 1))
        engine.forget()
        arm = _measured(name, unit.num_rows, 0.0, partial(stage, unit))
        found, read = engine.found // unit.num_rows, (engine.seen - engine.found) // unit.num_rows
        say(f"{name}: {found / (found + read):.0%} of the positions of its prompts were in the prefix cache")
        arms.append(replace(arm, flops=read_flops(language, read + job.max_new_tokens, found)))
    engine.close()
    return arms


def _language_flops(setting: Setting, tokens: int, language: dict[str, int]) -> float:
    split = setting.engine.split(setting.questions[0])
    return read_flops(language, len(split.prefix) + tokens + len(split.suffix) + setting.job.max_new_tokens)


def _print(setting: Setting, arms: Sequence[Arm]) -> None:
    base = arms[0].each_s
    say(f"{'':<52} {'answers/s':>10} {'ratio':>8} {'GFLOP/answer':>13} {'peak memory GB':>15}")
    for arm in arms:
        shown = f"{1 / arm.each_s:>10.3f} {base / arm.each_s:>7.1f}x {arm.flops / 1e9:>13.1f} {arm.peak_bytes / 1e9:>15.2f}"
        say(f"{arm.name:<52} {shown}")
    job, encode_s = setting.job, setting.encode_s[setting.job.reducer]
    for arm in arms:
        if arm.name.startswith(OURS):
            whole = encode_s / job.questions + arm.each_s
            name = arm.name.replace(OURS, "framefold encode and answer together")
            say(f"{name:<52} {1 / whole:>10.3f} {base / whole:>7.1f}x")
    held = {reducer: store.stats()["bytes_per_video"] for reducer, store in setting.stores.items()}
    say(f"bytes per video: {held['none']} full, {held[job.reducer]} reduced; encoding {encode_s:.2f} s per video")
    say(f"break-even against the documentation's loop: {break_even(setting, arms):.2f} questions per video")


def break_even(setting: Setting, arms: Sequence[Arm]) -> float:
    """Return how many questions per video pay for encoding it, with the first engine measured."""
    ours = next(arm for arm in arms if arm.name.startswith(OURS))
    return setting.encode_s[setting.job.reducer] / max(arms[0].each_s - ours.each_s, 1e-9)


def _summary(setting: Setting, arms: Sequence[Arm]) -> Report:
    measured = {arm.name: {"answers_per_s": 1 / arm.each_s, "ratio": arms[0].each_s / arm.each_s} for arm in arms}
    return {"bench": "answer", "preset": setting.job.preset, "arms": measured, "break_even": break_even(setting, arms)}


def main(args: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    return launch(AnswerBench, run, "framefold bench answer", args)


if __name__ == "__main__":
    sys.exit(main())
