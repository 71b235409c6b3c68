"""The tower with captures and each reducer beside plain transformers, in one run, random weights.

python -m benchmarks.bench_tower [--geometry demo|vit-l] [--clips 2] [--dtype bfloat16] [--repeat 3]
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from benchmarks.machine import describe
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


def best(work: Callable[[], object], repeat: int) -> float:
    """Seconds of the fastest of some runs, after one to warm up."""
    times = []
    for _ in range(repeat + 1):
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times[1:])


@torch.inference_mode()
def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--geometry", choices=GEOMETRY, default="vit-l")
    flags.add_argument("--clips", type=int, default=1)
    flags.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    flags.add_argument("--repeat", type=int, default=3)
    chosen = flags.parse_args()
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = CLIPVisionModel(CLIPVisionConfig(**GEOMETRY[chosen.geometry])).to(device, DTYPES[chosen.dtype]).eval()
    side = GEOMETRY[chosen.geometry]["image_size"]
    pixels = torch.randn(8 * chosen.clips, 3, side, side, device=device).to(model.dtype)
    print(describe())
    print(f"{chosen.geometry}, {chosen.clips} clips of 8 frames, {chosen.dtype}, {torch.get_num_threads()} threads")
    plain_s = best(lambda: model(pixels, output_hidden_states=True).hidden_states[-2], chosen.repeat)
    print(f"transformers, hidden_states[-2]      {1000 * plain_s / chosen.clips:9.1f} ms per clip   1.00x")
    for spec in SPECS:
        reducer = parse(spec)
        tower_s = best(lambda needs=reducer.needs: capture_tower(model, pixels, needs), chosen.repeat)
        hidden, captures = capture_tower(model, pixels, reducer.needs)
        seen = tokens(hidden, captures, chosen.clips)
        reduce_s = best(lambda r=reducer, t=seen: r.reduce(t), chosen.repeat)
        both = plain_s / (tower_s + reduce_s)
        print(
            f"tower + {spec:<28} {1000 * (tower_s + reduce_s) / chosen.clips:9.1f} ms per clip   {both:.2f}x"
            f"   reducer alone {1000 * reduce_s / chosen.clips:.2f} ms = {100 * reduce_s / tower_s:.1f} % of the tower"
        )


def tokens(hidden: Tensor, captures: dict[Capture, Tensor], clips: int) -> VisualTokens:
    side = int((hidden.shape[1] - 1) ** 0.5)
    ends = torch.arange(clips + 1, device=hidden.device) * 8
    return VisualTokens(features=hidden[:, 1:], cls=hidden[:, 0], grid=(side, side), clip_ptr=ends, captures=captures)


if __name__ == "__main__":
    main()
