"""Which frames of a video make its clip. Every policy gives exactly F indices for any N, rising, repeated where N < F."""

from collections.abc import Sequence
from typing import Literal

from pipeline.errors import ConfigError

Policy = Literal["linspace", "arange", "keyframe"]


def frame_indices(total: int, frames: int, policy: Policy = "linspace") -> list[int]:
    """Return the F indices of a clip out of N frames.

    `linspace` includes the first and the last frame, as the original Video-LLaVA samples; `arange` never takes the last
    one, as the transformers documentation samples. `keyframe` begins with those of `linspace`; see `snapped`. Integers only:
    equal to NumPy's rounding for all N below 100,000.

    Raises:
        ConfigError: no frame, or an unknown policy.
    """
    if total < 1 or frames < 1:
        raise ConfigError(f"expected at least one frame and one place for it, got {total} and {frames}")
    if policy == "arange":
        return [place * total // frames for place in range(frames)]
    if policy in ("linspace", "keyframe"):
        return [place * (total - 1) // max(frames - 1, 1) for place in range(frames)]
    raise ConfigError(f"unknown sampling policy {policy!r}, expected linspace, arange or keyframe")


def snapped(asked: Sequence[int], points: Sequence[int]) -> list[int]:
    """Return for each of F rising indices the nearest of some rising points, all distinct and rising.

    Where there are fewer points than indices, the indices themselves.
    """
    if len(points) < len(asked):
        return list(asked)
    chosen, low = [], 0
    for place, index in enumerate(asked):
        high = len(points) - (len(asked) - place - 1)
        best = min(range(low, high), key=lambda candidate: abs(points[candidate] - index))
        chosen.append(points[best])
        low = best + 1
    return chosen
