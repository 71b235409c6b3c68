"""Clips per second: the whole encode job, from MP4 files to committed shards, beside the tower alone on resident frames."""

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from jobs.bench.geometry import FRAMES, PRESETS, VISION, write_checkpoint
from jobs.bench.machine import describe, say
from jobs.bench.roofline import tower_flops
from jobs.commands import encode, shapes
from jobs.commands.encode import EncodeJob
from jobs.runtime.cluster import ClusterConfig, cluster
from jobs.runtime.launch import Report, launch
from pipeline.encode.stage import EncodeConfig
from pipeline.errors import check_at_least_one
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.device import check_present
from pipeline.models.tower import Tower


@dataclass(frozen=True, kw_only=True)
class EncodeBench:
    """Measure how much of the tower's speed is left when videos are decoded, reduced, hashed and committed around it."""

    preset: Literal["demo", "vit-l+llama-1.1b", "vit-l+llama-7b"] = "vit-l+llama-1.1b"
    """Its tower."""
    videos: int = 8
    reducers: tuple[str, ...] = ("none", "prumerge+", "nest")
    batch_clips: int = 4
    """Clips that go through the tower together."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    runner: Literal["local", "ray"] = "local"
    decoders: int = 1

    def __post_init__(self) -> None:
        check_at_least_one(self, "videos", "batch_clips", "decoders")
        check_present(self.device)


def run(job: EncodeBench) -> Report:
    """Print the table."""
    disable_progress_bar()
    set_verbosity_error()
    say(describe())
    vision = VISION[PRESETS[job.preset][0]]
    flops = tower_flops(vision, FRAMES, vision["num_hidden_layers"] - 1)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        write_checkpoint(f"{PRESETS[job.preset][0]} alone", model, getattr(torch, job.dtype))
        shapes.run(shapes.ShapesJob(out=f"{folder}/corpus", videos=job.videos, side_px=vision["image_size"]))
        alone = _tower_alone(job, model)
        say(f"{job.preset}, {job.dtype}, {job.runner}, {job.videos} videos, {torch.get_num_threads()} threads")
        say(f"{'':<32} {'clips/s':>8} {'of the tower':>13} {'TFLOP/s':>8}")
        say(f"{'tower alone, resident frames':<32} {alone:>8.3f} {'1.00x':>13} {alone * flops / 1e12:>8.2f}")
        found = {reducer: _whole(job, model, folder, reducer) for reducer in job.reducers}
        for reducer, rate in found.items():
            say(f"{'encode with ' + reducer:<32} {rate:>8.3f} {rate / alone:>12.2f}x {rate * flops / 1e12:>8.2f}")
    return {"bench": "encode", "preset": job.preset, "tower": alone, "clips_per_s": found}


def _tower_alone(job: EncodeBench, model: Path) -> float:
    """Return clips per second of the tower on frames that are in memory."""
    config = _config(job, model, "none").here()
    tower = Tower(Checkpoint.open(str(model)), device=config.device, dtype=config.compute_dtype)
    frames = torch.randint(0, 256, (FRAMES * job.batch_clips, tower.side_px, tower.side_px, 3), dtype=torch.uint8)
    ends = torch.arange(job.batch_clips + 1) * FRAMES
    rounds = max(1, job.videos // job.batch_clips)
    for number in range(rounds + 1):
        if number == 1:
            began = time.perf_counter()
        tower(frames, frozenset(), ends)
        if config.device == "cuda":
            torch.cuda.synchronize()
    return rounds * job.batch_clips / (time.perf_counter() - began)


def _whole(job: EncodeBench, model: Path, folder: str, reducer: str) -> float:
    """Return clips per second of an encode job, loading of the tower included."""
    at = f"{folder}/store-{len(list(Path(folder).iterdir()))}"
    made = EncodeJob(
        corpus=f"{folder}/corpus/videos",
        store=at,
        encode=_config(job, model, reducer),
        cluster=ClusterConfig(runner=job.runner),
        decoders=job.decoders,
    )
    if job.runner == "ray":
        with cluster(made.cluster):
            report = encode.run(made)
    else:
        report = encode.run(made)
    return float(report["this_run"]["committed"] / report["this_run"]["seconds"])


def _config(job: EncodeBench, model: Path, reducer: str) -> EncodeConfig:
    return EncodeConfig(
        model=str(model), reducer=reducer, device=job.device, compute_dtype=job.dtype, batch_clips=job.batch_clips
    )


def main(args: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    return launch(EncodeBench, run, "framefold bench encode", args)


if __name__ == "__main__":
    sys.exit(main())
