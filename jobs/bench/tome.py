"""What merging tokens inside the tower saves: ms per clip with `tome` beside the same blocks without it, random weights."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from jobs.bench.geometry import VISION
from jobs.bench.machine import describe, say
from jobs.runtime.launch import Report, launch
from pipeline.errors import ConfigError, check_at_least_one
from pipeline.models.device import device_here
from pipeline.models.token_merging import merge_blocks
from pipeline.models.tower import DTYPES, blocks_to_run, capture_tower
from reducers.methods.tome import ToMe, ToMeConfig


@dataclass(frozen=True, kw_only=True)
class TomeBench:
    """Time the tower with and without token merging."""

    geometry: Literal["demo", "vit-l"] = "vit-l"
    share: tuple[float, ...] = (0.5, 0.25, 0.125)
    """Patches left of each frame, as a share."""
    clips: int = 1
    """Clips of 8 frames that go through the tower together."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    repeat: int = 3
    """Runs of each; the fastest counts."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "clips", "repeat")
        if not self.share or not all(0 < share <= 1 for share in self.share):
            raise ConfigError(f"expected shares above 0 and at most 1, got {self.share}")


@dataclass(frozen=True, kw_only=True)
class Saved:
    """One line of the table."""

    keep: int
    """Patches left of each frame that were asked for."""
    left: int
    """Patches that were left: a block can at most halve them."""
    plain_s: float
    """Seconds of the tower without merging, as encoding with `none` runs it."""
    merged_s: float
    """Seconds with merging."""

    @property
    def speedup(self) -> float:
        """How many times faster the tower is."""
        return self.plain_s / self.merged_s


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


@torch.inference_mode()
def merged(model: CLIPVisionModel, pixels: Tensor, keep: int) -> Tensor:
    """Return the rows (F, 1 + K, D) that merging leaves, CLS first."""
    blocks = list(model.encoder.layers)
    blocks = blocks[: blocks_to_run(len(blocks), -2)]
    hidden = model.pre_layrnorm(model.embeddings(pixels))
    steps = ToMe(ToMeConfig(keep=keep)).schedule(hidden.shape[1] - 1, len(blocks))
    return merge_blocks(blocks, hidden, steps).rows


@torch.inference_mode()
def tome_savings(model: CLIPVisionModel, pixels: Tensor, keeps: Sequence[int], repeat: int = 3) -> list[Saved]:
    """Time a tower on pixels (F, 3, S, S) for some numbers of patches left of each frame."""
    plain_s = best(lambda: capture_tower(model, pixels, frozenset()), repeat)
    found = []
    for keep in keeps:
        merged_s = best(partial(merged, model, pixels, keep), repeat)
        left = merged(model, pixels, keep).shape[1] - 1
        found.append(Saved(keep=keep, left=left, plain_s=plain_s, merged_s=merged_s))
    return found


def run(job: TomeBench) -> Report:
    """Print the table."""
    torch.manual_seed(0)
    device = device_here("auto")
    geometry = VISION[job.geometry]
    model = CLIPVisionModel(CLIPVisionConfig(**geometry)).to(device, DTYPES[job.dtype]).eval()
    pixels = torch.randn(8 * job.clips, 3, geometry["image_size"], geometry["image_size"], device=device).to(model.dtype)
    patches = (geometry["image_size"] // geometry["patch_size"]) ** 2
    lines = tome_savings(model, pixels, [max(1, int(patches * share)) for share in job.share], job.repeat)
    say(describe())
    say(f"{job.geometry}, {job.clips} clips of 8 frames, {job.dtype}, {torch.get_num_threads()} threads")
    say(f"none             {patches:5d} patches per frame {1000 * lines[0].plain_s / job.clips:9.1f} ms per clip   1.00x")
    for line in lines:
        ms = 1000 * line.merged_s / job.clips
        say(
            f"tome(keep={line.keep})".ljust(16)
            + f" {line.left:5d} patches per frame {ms:9.1f} ms per clip   {line.speedup:.2f}x"
        )
    return {"silent": True}


def main(args: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    return launch(TomeBench, run, "framefold bench tome", args)


if __name__ == "__main__":
    sys.exit(main())
