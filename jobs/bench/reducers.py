"""Each reducer beside the tower in one run, random weights: what a method costs next to what it follows."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from jobs.bench.machine import describe
from jobs.launch import Report, launch
from pipeline.vision import DTYPES, capture_tower
from reducers.base import Capture, VisualTokens
from reducers.registry import parse

GEOMETRY = {
    "demo": {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 5, "num_attention_heads": 2, "image_size": 64,
             "patch_size": 8},
    "vit-l": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
              "image_size": 224, "patch_size": 14},
}  # fmt: skip
SPECS = ("none", "spatial", "prumerge", "prumerge+", "prumerge+(ratio=0.125)", "visionzip", "hired")


@dataclass(frozen=True, kw_only=True)
class ReducersBench:
    """Time the tower with captures and each reducer, beside plain transformers."""

    geometry: Literal["demo", "vit-l"] = "vit-l"
    clips: int = 1
    """Clips of 8 frames that go through the tower together."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    repeat: int = 3
    """Runs of each; the fastest counts."""


def best(work: Callable[[], object], repeat: int) -> float:
    """Return the seconds of the fastest of some runs, after one to warm up."""
    times = []
    for _ in range(repeat + 1):
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times[1:])


def say(line: str) -> None:
    """Print a line of a table."""
    sys.stdout.write(line + "\n")


@torch.inference_mode()
def run(job: ReducersBench) -> Report:
    """Print the table."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = CLIPVisionModel(CLIPVisionConfig(**GEOMETRY[job.geometry])).to(device, DTYPES[job.dtype]).eval()
    side = GEOMETRY[job.geometry]["image_size"]
    pixels = torch.randn(8 * job.clips, 3, side, side, device=device).to(model.dtype)
    say(describe())
    say(f"{job.geometry}, {job.clips} clips of 8 frames, {job.dtype}, {torch.get_num_threads()} threads")
    plain_s = best(lambda: model(pixels, output_hidden_states=True).hidden_states[-2], job.repeat)
    say(f"transformers, hidden_states[-2]      {1000 * plain_s / job.clips:9.1f} ms per clip   1.00x")
    for spec in SPECS:
        _one(job, model, pixels, spec, plain_s)
    return {"silent": True}


def _one(job: ReducersBench, model: CLIPVisionModel, pixels: Tensor, spec: str, plain_s: float) -> None:
    reducer = parse(spec)
    tower_s = best(lambda: capture_tower(model, pixels, reducer.needs), job.repeat)
    hidden, captures = capture_tower(model, pixels, reducer.needs)
    seen = tokens(hidden, captures, job.clips)
    reduce_s = best(lambda: reducer.reduce(seen), job.repeat)
    both = plain_s / (tower_s + reduce_s)
    say(
        f"tower + {spec:<28} {1000 * (tower_s + reduce_s) / job.clips:9.1f} ms per clip   {both:.2f}x"
        f"   reducer alone {1000 * reduce_s / job.clips:.2f} ms = {100 * reduce_s / tower_s:.1f} % of the tower"
    )


def tokens(hidden: Tensor, captures: dict[Capture, Tensor], clips: int) -> VisualTokens:
    """Return what the tower saw, as reducers take it."""
    side = int((hidden.shape[1] - 1) ** 0.5)
    ends = torch.arange(clips + 1, device=hidden.device) * 8
    return VisualTokens(features=hidden[:, 1:], cls=hidden[:, 0], grid=(side, side), clip_ptr=ends, captures=captures)


def main(args: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    return launch(ReducersBench, run, "framefold bench reducers", args)


if __name__ == "__main__":
    sys.exit(main())
