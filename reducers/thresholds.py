"""Thresholds on similarity for a corpus and a tower: published values were tuned on others and do not carry over.

Shapes: F frames of one clip, N patches, D width, n values of a sample.

Source: docs/methods/video.md section 2, point 3. Only the share of static pairs stands there; the other rules are ours.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from reducers.base import ReducerError, ReducerSpecError
from reducers.ops.ranking import adjacent_likeness, normalised
from reducers.ops.similarity import above
from reducers.registry import parse
from reducers.spec import Term, terms


@dataclass(frozen=True, kw_only=True)
class Shares:
    """What a threshold shall come to on the sample."""

    static: float = 0.5
    """Of the pairs of a patch and its own place one frame later, or of a frame and the next, these count as the same."""
    cut: float = 0.25
    """Of the frames that follow another, these begin a segment: one in four, as published at 32 frames."""

    def __post_init__(self) -> None:
        if not (0 < self.static < 1 and 0 < self.cut < 1):
            raise ReducerError(f"expected shares in (0, 1), got {self.static} static and {self.cut} cut")


def measures(x_FND: Tensor, g_FD: Tensor) -> dict[str, Tensor]:
    """Return the cosines (n,) of one clip that thresholds are compared with.

    same_place: patches with their own place one frame later. frames: mean patches of adjacent frames. frame_vectors: CLS
    rows of adjacent frames. patches: all pairs of the middle frame. Six digits each, float64: what a spec can say.
    """
    middle_ND = normalised(x_FND[len(x_FND) // 2])
    upper = torch.triu_indices(len(middle_ND), len(middle_ND), 1, device=middle_ND.device)
    found = {
        "same_place": adjacent_likeness(x_FND),
        "frames": adjacent_likeness(x_FND.float().mean(1)),
        "frame_vectors": adjacent_likeness(g_FD),
        "patches": (middle_ND @ middle_ND.T)[upper[0], upper[1]],
    }
    return {name: (1e6 * value.double()).round().flatten() / 1e6 for name, value in found.items()}


def below(values_n: Tensor, share: float) -> float:
    """Return the value below which `share` of the values lie."""
    return -above(-values_n, share)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The cosines of all sampled clips."""

    values: Mapping[str, Tensor]
    """As `measures` names them, each (n,)."""
    patches: int
    """N."""


Rule = Callable[[Sample, float, Shares], float]
"""From a sample, the share of tokens that is kept, and the shares wanted, to a threshold."""


def _same_place(sample: Sample, retention: float, shares: Shares) -> float:
    return above(sample.values["same_place"], shares.static)


def _frame_cut(sample: Sample, retention: float, shares: Shares) -> float:
    return below(sample.values["frames"], shares.cut)


def _vector_cut(sample: Sample, retention: float, shares: Shares) -> float:
    return below(sample.values["frame_vectors"], shares.cut)


def _frame_uniqueness(sample: Sample, retention: float, shares: Shares) -> float:
    return max(0.0, 1 - above(sample.values["frames"], shares.static))


def _spatial_uniqueness(sample: Sample, retention: float, shares: Shares) -> float:
    """Let a picked patch suppress as many others as there are patches for each token."""
    return max(0.0, 1 - above(sample.values["patches"], min(1.0, 1 / (retention * sample.patches))))


RULES: Mapping[str, Mapping[str, Rule]] = {
    "holitom": {"tau": _same_place},
    "flashvid": {"tau": _same_place, "segment_tau": _frame_cut},
    "fastvid": {"tau": _vector_cut},
    "unicomp": {"frame_uniqueness": _frame_uniqueness, "spatial_uniqueness": _spatial_uniqueness},
    "static": {"tau": _same_place},
    "tree": {"tau": _same_place, "segment_tau": _frame_cut},
}
"""The thresholds of each method, or of each first part of a composition."""

MARKED = {"holitom", "flashvid", "static", "tree"}
"""Methods whose parameters say where tau came from: tau_mode=quantile."""


def check(spec: str) -> None:
    """Raise ReducerSpecError for a spec that has no threshold, cannot be, or says already what is to be found."""
    parse(spec)
    first = terms(spec)[0]
    if first.name not in RULES:
        raise ReducerSpecError(f"{first.name} has no threshold to calibrate, expected one of {', '.join(RULES)}")
    given = {part.partition("=")[0].strip() for part in first.arguments.split(",")}
    if said := sorted(given & {"keep", "ratio", "tau_mode", *RULES[first.name]}):
        raise ReducerSpecError(f"{first.name}: {said[0]} is set by the calibration or its retention: leave it out")


def calibrated(spec: str, sample: Sample, retention: float, shares: Shares) -> tuple[str, dict[str, float]]:
    """Return a spec with budget and thresholds in it, and the thresholds. Raises ReducerSpecError as `check` does."""
    check(spec)
    first, *rest = terms(spec)
    found = {key: round(rule(sample, retention, shares), 6) for key, rule in RULES[first.name].items()}
    marks = ["tau_mode=quantile"] if first.name in MARKED else []
    said = [f"ratio={retention:g}", *(f"{key}={value:.6f}" for key, value in found.items()), *marks]
    listed = ", ".join([*filter(None, [first.arguments.strip()]), *said])
    full = "|".join(_spelled(term) for term in (Term(name=first.name, arguments=listed), *rest))
    parse(full)
    return full, found


def _spelled(term: Term) -> str:
    return f"{term.name}({term.arguments.strip()})" if term.arguments.strip() else term.name
