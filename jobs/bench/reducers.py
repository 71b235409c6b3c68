"""Each reducer beside the tower and beside a naive loop over tokens, in one run: what a method costs next to what it follows.

Shapes: F frames (8 of each clip), N patches, T = N + 1 rows, D width.
"""

import importlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from jobs.bench.geometry import FRAMES, VISION
from jobs.bench.machine import describe, say
from jobs.runtime.launch import Report, launch
from pipeline.errors import ConfigError
from pipeline.models.token_merging import merge_blocks
from pipeline.models.tower import DTYPES, blocks_to_run, capture_tower
from reducers.base import Capture, Reducer, TextQuery, VisualTokens
from reducers.methods.tome import ToMe, match, merge
from reducers.registry import names, parse

JOINT = 768
"""Width of the joint image-text space."""
ROOT = Path(__file__).parents[2]
NO_LOOPS = "no loops here: they are in tests/naive of a checkout, this is an installed package"


@dataclass(frozen=True, kw_only=True)
class ReducersBench:
    """Time every reducer beside the tower, with random weights and frames that share a scene."""

    geometry: Literal["demo", "vit-l"] = "vit-l"
    clips: int = 1
    """Clips of 8 frames that are encoded and reduced together."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the CPU, then the GPU if there is one."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    repeat: int = 5
    """Runs of each reducer after one to warm up; the median counts."""
    tower_repeat: int = 3
    """Runs of the tower after one to warm up; the median counts."""
    naive: bool = True
    """Also run the naive loops, each once on one clip."""
    clock: Literal["wall", "cpu"] = "wall"
    """cpu: processor time of this process, for a machine that others use too; a GPU is always timed by the wall clock."""


@dataclass(frozen=True)
class Bench:
    """What the rows of one table share."""

    job: ReducersBench
    device: str
    model: Any
    """A transformers CLIPVisionModel, whose blocks are untyped."""
    tower_s: float
    loops: Any
    """The module tests.naive, None without."""


def seconds(work: Callable[[], object], job: ReducersBench, device: str) -> float:
    """Return what one run takes."""
    now = time.process_time if job.clock == "cpu" and device == "cpu" else time.perf_counter
    began = now()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return now() - began


def median_s(work: Callable[[], object], repeat: int, job: ReducersBench, device: str) -> float:
    """Return the median seconds of some runs, after one to warm up."""
    return statistics.median([seconds(work, job, device) for _ in range(repeat + 1)][1:])


@torch.inference_mode()
def run(job: ReducersBench) -> Report:
    """Print one table per device."""
    if job.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda needs a GPU that torch can use, got none")
    if min(job.clips, job.repeat, job.tower_repeat) < 1:
        raise ConfigError(f"expected at least one clip and one run, got {job.clips}, {job.repeat} and {job.tower_repeat}")
    say(describe())
    loops = _loops() if job.naive else None
    if job.naive and loops is None:
        say(NO_LOOPS)
    found = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for device in found if job.device == "auto" else [job.device]:
        _table(job, device, loops)
    return {"silent": True}


def _loops() -> Any:
    """Return the module of naive loops, or None where there is no checkout."""
    if not (ROOT / "tests" / "naive" / "__init__.py").exists():
        return None
    sys.path.insert(0, str(ROOT))
    return importlib.import_module("tests.naive")


def _table(job: ReducersBench, device: str, loops: Any) -> None:
    torch.manual_seed(0)
    shape = VISION[job.geometry]
    model = CLIPVisionModel(CLIPVisionConfig(**shape)).to(device, DTYPES[job.dtype]).eval()
    pixels = torch.randn(FRAMES * job.clips, 3, shape["image_size"], shape["image_size"], device=device).to(model.dtype)
    say(f"\n{device}, {job.geometry}, {job.clips} x {FRAMES} frames at a time, {job.dtype}")
    say(f"{torch.get_num_threads()} threads, {job.clock} clock")
    needs = frozenset().union(*(parse(name).needs for name in names()))
    plain_s = median_s(lambda: model(pixels, output_hidden_states=True).hidden_states[-2], job.tower_repeat, job, device)
    tower_s = median_s(lambda: capture_tower(model, pixels, frozenset()), job.tower_repeat, job, device)
    all_s = median_s(lambda: capture_tower(model, pixels, needs), job.tower_repeat, job, device)
    for what, taken_s in (
        ("transformers, hidden_states[-2]", plain_s),
        ("tower", tower_s),
        ("tower with the captures of all reducers", all_s),
    ):
        say(f"{what:<40}{1000 * taken_s / job.clips:10.1f} ms per video   {plain_s / taken_s:.2f}x")
    say(f"{'reducer':<14}{'ms per video':>14}{'of the tower':>14}{'loop, ms':>12}{'loop / ours':>13}")
    bench = Bench(job, device, model, tower_s, loops)
    for name in names():
        reducer = parse(name)
        row(bench, name, *(_tome(bench, reducer) if isinstance(reducer, ToMe) else _reducer(bench, reducer)))
    _tome_tower(bench, pixels, ToMe(parse("tome").config))


def row(bench: Bench, name: str, ours_s: float, loop_s: float | None) -> None:
    """Print one reducer: seconds of all clips, and of the loop on one clip."""
    each_s = ours_s / bench.job.clips
    loop = ("-", "-") if loop_s is None else (f"{1000 * loop_s:.0f}", f"{loop_s / each_s:.1f}")
    say(f"{name:<14}{1000 * each_s:14.2f}{100 * ours_s / bench.tower_s:12.2f} %{loop[0]:>12}{loop[1]:>13}")


def _reducer(bench: Bench, reducer: Reducer) -> tuple[float, float | None]:
    """Return the seconds of a reducer on all clips, and of its loop on one."""
    tokens, text = batch(bench, bench.job.clips, reducer.needs, joint=reducer.needs_text)
    ours_s = median_s(lambda: reducer.reduce(tokens, text), bench.job.repeat, bench.job, bench.device)
    if bench.loops is None:
        return ours_s, None
    video = bench.loops.video_of(*batch(bench, 1, reducer.needs, joint=reducer.needs_text))
    loop = bench.loops.NAIVE[reducer.name]
    return ours_s, seconds(lambda: np.stack([t.row for t in loop(video, reducer.config)]), bench.job, "cpu")


def batch(
    bench: Bench, clips: int, needs: frozenset[Capture], *, joint: bool = False
) -> tuple[VisualTokens, TextQuery]:
    """Return seeded tokens as the tower gives them, and questions: each frame is its clip's scene and as much noise."""
    shape = VISION[bench.job.geometry]
    side, width = shape["image_size"] // shape["patch_size"], shape["hidden_size"]
    draw = torch.Generator().manual_seed(0)
    scene = torch.randn(clips, 1, side**2 + 1, width, generator=draw)
    hidden = (scene + torch.randn(clips, FRAMES, side**2 + 1, width, generator=draw)).flatten(0, 1)
    hidden = hidden.to(bench.device, DTYPES[bench.job.dtype])
    head = width // shape["num_attention_heads"]
    captures: dict[Capture, Tensor] = {}
    for need in sorted(needs, key=str):
        wide = () if need.kind != "keys" else (width if need.heads == "concat" else head,)
        values = torch.randn(FRAMES * clips, side**2, *wide, generator=draw)
        captures[need] = (values if wide else (2 * values).softmax(1)).to(bench.device)
    clip_space = torch.randn(FRAMES * clips, side**2, JOINT, generator=draw).to(bench.device) if joint else None
    tokens = VisualTokens(
        features=hidden[:, 1:],
        cls=hidden[:, 0],
        grid=(side, side),
        clip_ptr=torch.arange(clips + 1, device=bench.device) * FRAMES,
        captures=captures,
        clip_space=clip_space,
    )
    return tokens, TextQuery(embedding=torch.randn(clips, JOINT, generator=draw).to(bench.device))


def _tome(bench: Bench, reducer: ToMe) -> tuple[float, float | None]:
    """Return the seconds of all matching and merging, and of its loop, without the tower around them."""
    blocks = blocks_to_run(len(bench.model.encoder.layers), -2)
    heads = VISION[bench.job.geometry]["num_attention_heads"]

    def start(clips: int) -> tuple[Tensor, Tensor]:
        tokens, _ = batch(bench, clips, frozenset())
        rows = torch.cat([tokens.features[:, :1], tokens.features], dim=1)
        return rows, rows.unflatten(-1, (heads, -1)).float().mean(2)

    rows, keys = start(bench.job.clips)
    steps = reducer.schedule(rows.shape[1] - 1, blocks)

    def work() -> None:
        x, size = rows, torch.ones(rows.shape[:2], device=rows.device)
        for r in steps:
            x, size = merge(x, size, match(keys[:, : x.shape[1]], r, class_token=True))

    ours_s = median_s(work, bench.job.repeat, bench.job, bench.device)
    if bench.loops is None:
        return ours_s, None
    frames = [[list(part.double().cpu().numpy()) for part in pair] for pair in zip(*start(1), strict=True)]
    return ours_s, seconds(lambda: _tome_loop(bench.loops, frames, steps), bench.job, "cpu")


def _tome_loop(loops: Any, frames: list[list[Any]], steps: Sequence[int]) -> None:
    """Match and merge rows and keys of each frame. Any: rows are arrays."""
    for x, keys in frames:
        sizes = [1.0] * len(x)
        for r in steps:
            x, sizes, _ = loops.merge_step(keys[: len(x)], x, sizes, r)


def _tome_tower(bench: Bench, pixels: Tensor, reducer: ToMe) -> None:
    """Say how much faster the tower is with merging in it."""
    blocks = list(bench.model.encoder.layers)
    blocks = blocks[: blocks_to_run(len(blocks), -2)]

    def work() -> None:
        hidden = bench.model.pre_layrnorm(bench.model.embeddings(pixels))
        merge_blocks(blocks, hidden, reducer.schedule(hidden.shape[1] - 1, len(blocks)))

    merged_s = median_s(work, bench.job.tower_repeat, bench.job, bench.device)
    each = f"{1000 * merged_s / bench.job.clips:.1f} ms per video, {bench.tower_s / merged_s:.2f} times as fast"
    say(f"tower with tome(keep={reducer.config.keep}) in it: {each}")


def main(args: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    return launch(ReducersBench, run, "framefold bench reducers", args)


if __name__ == "__main__":
    sys.exit(main())
