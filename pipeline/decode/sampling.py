"""Which frames of a video make its clip. Both policies give exactly F indices for any N, rising, repeated where N < F."""

from typing import Literal

from pipeline.errors import ConfigError

Policy = Literal["linspace", "arange"]


def frame_indices(total: int, frames: int, policy: Policy = "linspace") -> list[int]:
    """Return the F indices of a clip out of N frames.

    `linspace` includes the first and the last frame, as the original Video-LLaVA samples; `arange` never takes the last
    one, as the transformers documentation samples. Integers only: equal to NumPy's rounding for all N below 100,000.

    Raises:
        ConfigError: no frame, or an unknown policy.
    """
    if total < 1 or frames < 1:
        raise ConfigError(f"expected at least one frame and one place for it, got {total} and {frames}")
    if policy == "arange":
        return [place * total // frames for place in range(frames)]
    if policy == "linspace":
        return [place * (total - 1) // max(frames - 1, 1) for place in range(frames)]
    raise ConfigError(f"unknown sampling policy {policy!r}, expected linspace or arange")
