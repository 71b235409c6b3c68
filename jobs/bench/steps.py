"""What a step of generation takes, kernel by kernel, in fixed shapes (recorded on a GPU) and compiled: where which pays.

Random weights; the engine's own path from stored tokens to text. A step must read all weights and all keys and values once:
bytes per second of that tell how far it is from what memory allows.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from jobs.bench.geometry import LANGUAGE, PRESETS, config_of, random_model
from jobs.bench.machine import describe, say
from jobs.bench.roofline import weights
from jobs.runtime.launch import Report, launch
from pipeline.engines.generation import Rows, Steps
from pipeline.engines.transformers_engine import TransformersEngine, VideoQuestions
from pipeline.errors import check_at_least_one
from pipeline.models.device import StepKind, check_present, device_here
from pipeline.models.prompts import PromptTemplate
from pipeline.models.tower import DTYPES
from pipeline.synthetic.model import WORDS, build_tokenizer


@dataclass(frozen=True, kw_only=True)
class StepsBench:
    """Time the steps of generation."""

    preset: Literal["demo", "vit-l+llama-1.1b", "vit-l+llama-7b"] = "demo"
    videos: int = 1
    """Answered as one batch."""
    questions: int = 10
    """About each video."""
    tokens: int = 256
    """Visual tokens of a video."""
    steps: int = 16
    """Steps that are timed together."""
    kinds: tuple[StepKind, ...] = ("eager", "static", "compile")
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    repeat: int = 3
    """Runs of each; the fastest counts."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "videos", "questions", "tokens", "steps", "repeat")


@dataclass(frozen=True, kw_only=True)
class Taken:
    """One line of the table."""

    kind: StepKind
    first_s: float
    """Seconds of the first batch, with all that is compiled or recorded."""
    step_s: float
    """Seconds of a step."""


def run(job: StepsBench) -> Report:
    """Print the table."""
    device = device_here(job.device)
    check_present(device)
    model = random_model(job.preset, DTYPES[job.dtype])
    model.model.video_tower = None
    lines = [_taken(job, model.to(device), kind) for kind in job.kinds]
    held = _bytes(job)
    say(describe())
    say(f"{job.preset}, {job.dtype}, {device}, {torch.get_num_threads()} threads; {job.videos} videos of {job.tokens} tokens,")
    say(f"{job.questions} questions each; a step reads {held / 1e9:.3f} GB of weights, keys and values")
    say(f"{'':<10} {'first batch s':>14} {'ms per step':>12} {'ratio':>7} {'GB/s':>8}")
    for line in lines:
        ratio = lines[0].step_s / line.step_s
        say(f"{line.kind:<10} {line.first_s:>14.2f} {1e3 * line.step_s:>12.2f} {ratio:>6.2f}x {held / line.step_s / 1e9:>8.1f}")
    return {"bench": "steps", "preset": job.preset, "steps": {line.kind: {"ms": 1e3 * line.step_s} for line in lines}}


class Watched:
    """Steps that note when each was done."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps
        self.done_s: list[float] = []

    def say(self, rows: Rows, longest: int) -> Iterator[Tensor]:
        """See `pipeline.engines.generation.Steps`."""
        self.done_s = []
        for next_B in self.steps.say(rows, longest):
            if next_B.is_cuda:
                torch.cuda.synchronize()
            self.done_s.append(time.perf_counter())
            yield next_B

    def forget(self) -> None:
        """See `pipeline.engines.generation.Steps`."""
        self.steps.forget()

    @property
    def step_s(self) -> float:
        """Return the seconds of a step behind the first, which reads the suffixes."""
        return (self.done_s[-1] - self.done_s[0]) / (len(self.done_s) - 1)


def _taken(job: StepsBench, model: Any, kind: StepKind) -> Taken:
    asked = TransformersEngine(model, build_tokenizer(), PromptTemplate(), max_new_tokens=job.steps + 1, steps=kind)
    asked.max_batch_tokens = max(asked.max_batch_tokens, 2 * job.videos * (job.questions + 1) * (job.tokens + 256))
    asked.eos = (-1,)  # no answer ends early
    asked.steps = watched = Watched(asked.steps)
    began = time.perf_counter()
    asked.answer(_groups(job))
    first_s = time.perf_counter() - began
    steps_s = []
    for _ in range(job.repeat):
        asked.answer(_groups(job))
        steps_s.append(watched.step_s)
    return Taken(kind=kind, first_s=first_s, step_s=min(steps_s))


def _groups(job: StepsBench) -> list[VideoQuestions]:
    width = config_of(job.preset).vision_config.hidden_size
    questions = [" ".join(WORDS[3 + at % 60 : 11 + at % 60]) for at in range(job.questions)]
    return [VideoQuestions(features=torch.randn(job.tokens, width), questions=questions)] * job.videos


def _bytes(job: StepsBench) -> int:
    """Return what a step must read: all weights once, and the keys and values of each row, without its question."""
    language = LANGUAGE[PRESETS[job.preset][1]]
    width = language["hidden_size"] // language["num_attention_heads"]
    position = 2 * language["num_hidden_layers"] * language["num_key_value_heads"] * width
    return DTYPES[job.dtype].itemsize * (weights(language) + job.videos * job.questions * job.tokens * position)


def main(args: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    return launch(StepsBench, run, "framefold bench steps", args)


if __name__ == "__main__":
    sys.exit(main())
