"""The efficiency table of the PruMerge paper for any number of tokens: by the roofline, and measured where the model fits."""

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import VideoLlavaForConditionalGeneration

from jobs.bench.geometry import LANGUAGE, PRESETS, write_checkpoint
from jobs.bench.machine import describe, say
from jobs.bench.roofline import MACHINES, Prefill, prefill
from jobs.runtime.launch import Report, launch
from pipeline.models.device import device_here

QUESTION_TOKENS = 40
"""Of the prompt besides the visual tokens."""


@dataclass(frozen=True, kw_only=True)
class EfficiencyBench:
    """Print FLOPs, prefill time and memory of a prompt, by number of visual tokens."""

    preset: Literal["demo", "vit-l+llama-1.1b", "vit-l+llama-7b"] = "vit-l+llama-7b"
    tokens: tuple[int, ...] = (2056, 512, 256, 128)
    """Visual tokens."""
    machines: tuple[Literal["v100", "a100", "h200"], ...] = ("v100", "h200")
    """Machines of the roofline."""
    measure: bool = False
    """Also read such prompts on this machine, in 16 bits, with random weights."""
    repeat: int = 3
    """Runs of each measurement after one to warm up; the median counts."""


def run(job: EfficiencyBench) -> Report:
    """Print the tables."""
    say(describe())
    config = LANGUAGE[PRESETS[job.preset][1]]
    for name in job.machines:
        for bits in (16, 4):
            say(f"roofline, {job.preset}, {name}, weights in {bits} bits, {QUESTION_TOKENS} tokens of text")
            say(f"{'visual tokens':>13}  {'TFLOPs':>8}  {'prefill ms':>10}  {'memory GB':>9}  {'activation GB':>13}")
            for count in job.tokens:
                say(_line(count, prefill(config, count + QUESTION_TOKENS, MACHINES[name], bits)))
    if job.measure:
        measured(job)
    return {"silent": True}


def _line(tokens: int, cost: Prefill) -> str:
    return (
        f"{tokens:>13}  {cost.flops / 1e12:>8.2f}  {1000 * cost.seconds:>10.2f}  {cost.memory_bytes / 1e9:>9.2f}"
        f"  {cost.activation_bytes / 1e9:>13.3f}"
    )


def measured(job: EfficiencyBench) -> None:
    """Read prompts with the language model of the preset."""
    device = device_here("auto")
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(job.preset, Path(folder), torch.bfloat16)
        model: Any = VideoLlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).to(device)
    say(f"measured here, {job.preset}, bfloat16, {torch.get_num_threads()} threads, median of {job.repeat}")
    say(f"{'visual tokens':>13}  {'prefill ms':>10}  {'TFLOP/s':>8}  {'ratio':>6}")
    first = 0.0
    for count in job.tokens:
        took = _read(model, count + QUESTION_TOKENS, job.repeat)
        first = first or took
        flops = prefill(LANGUAGE[PRESETS[job.preset][1]], count + QUESTION_TOKENS, MACHINES["h200"]).flops
        say(f"{count:>13}  {1000 * took:>10.1f}  {flops / took / 1e12:>8.2f}  {first / took:>5.1f}x")


@torch.inference_mode()
def _read(model: Any, positions: int, repeat: int) -> float:
    """Return seconds to read a prompt. Any: the classes of transformers are untyped."""
    rows = torch.randn(1, positions, model.config.text_config.hidden_size, device=model.device, dtype=model.dtype) / 50
    times = []
    for _ in range(repeat + 1):
        began = time.perf_counter()
        model.lm_head(model.model.language_model(inputs_embeds=rows).last_hidden_state[:, -1])
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def main(args: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    return launch(EfficiencyBench, run, "framefold bench efficiency", args)


if __name__ == "__main__":
    sys.exit(main())
