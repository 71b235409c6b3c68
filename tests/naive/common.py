"""What the naive loops share. Every number is a float64; only the values of one token are an array."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from reducers.base import TextQuery, VisualTokens

Row = np.ndarray
"""The values of one token."""


@dataclass
class Token:
    """One output token: where it stands, what it is, and the patches it speaks for, one entry per share of each."""

    anchor: int
    row: Row
    members: list[int] = field(default_factory=list)
    size: float = 0.0


@dataclass(frozen=True)
class Video:
    """One clip as lists of lists: frame, then patch."""

    x: list[list[Row]]
    cls: list[Row] | None
    captures: dict[Any, Any]
    grid: tuple[int, int]
    joint: list[list[Row]] | None
    text: Row | None

    @property
    def frames(self) -> int:
        return len(self.x)

    @property
    def patches(self) -> int:
        return len(self.x[0])


def video_of(tokens: VisualTokens, text: TextQuery | None = None) -> Video:
    """Take one clip apart."""

    def rows(values: Any) -> list[list[Row]]:
        return [list(frame) for frame in values.double().cpu().numpy()]

    return Video(
        x=rows(tokens.features),
        cls=None if tokens.cls is None else list(tokens.cls.double().cpu().numpy()),
        captures={need: rows(value) for need, value in tokens.captures.items()},
        grid=tokens.grid,
        joint=None if tokens.clip_space is None else rows(tokens.clip_space),
        text=None if text is None else text.embedding[0].double().cpu().numpy(),
    )


def length(row: Row) -> float:
    return math.sqrt(float(row @ row))


def unit(row: Row) -> Row:
    return row / max(length(row), 1e-12)


def cosine(a: Row, b: Row) -> float:
    return float(a @ b) / (max(length(a), 1e-12) * max(length(b), 1e-12))


def mean(rows: Sequence[Row]) -> Row:
    total = np.zeros_like(rows[0])
    for row in rows:
        total = total + row
    return total / len(rows)


def by_score(scores: Sequence[float]) -> list[int]:
    """All indices, the largest score first, the lower index among equals."""
    return sorted(range(len(scores)), key=lambda at: (-scores[at], at))


def softmax(scores: Sequence[float]) -> list[float]:
    top = max(scores)
    powers = [math.exp(score - top) for score in scores]
    return [power / sum(powers) for power in powers]


def quantile(values: Sequence[float], share: float) -> float:
    ordered, place = sorted(values), share * (len(values) - 1)
    below = math.floor(place)
    above = min(below + 1, len(values) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def outliers(values: Sequence[float], factor: float) -> int:
    """How many values lie above Q3 + factor * (Q3 - Q1)."""
    low, high = quantile(values, 0.25), quantile(values, 0.75)
    return sum(value > high + factor * (high - low) for value in values)


def allocate(total: int, weights: Sequence[float], cap: int) -> list[int]:
    """docs/methods/frames.md section 6: floors first, what is left one by one by the largest fraction."""
    exact = [total * weight / sum(weights) for weight in weights]
    shares = [min(cap, math.floor(quota)) for quota in exact]
    turns = by_score([quota - math.floor(quota) for quota in exact])
    while sum(shares) < min(total, cap * len(shares)):
        for part in turns:
            if shares[part] < cap and sum(shares) < min(total, cap * len(shares)):
                shares[part] += 1
    return shares


def distance(a: Row, b: Row) -> float:
    return length(a - b) / math.sqrt(len(a))


def dense_points(points: Sequence[Row], count: int, neighbours: int) -> list[int]:
    """docs/methods/video.md section 5, DPC: the `count` points that are dense and far from denser ones."""
    n = len(points)
    gaps = [[0.0] * n for _ in range(n)]
    for i in range(n):
        for j in range(i):
            gaps[i][j] = gaps[j][i] = distance(points[i], points[j])
    densities = [math.exp(-sum(gap**2 for gap in sorted(row)[:neighbours]) / neighbours) for row in gaps]
    scores = []
    for i in range(n):
        denser = [gaps[i][j] for j in range(n) if densities[j] > densities[i]]
        scores.append(densities[i] * (min(denser) if denser else max(map(max, gaps))))
    return sorted(by_score(scores)[:count])


def nearest(point: Row, others: Sequence[Row]) -> int:
    """The index of the closest of some points, the lower among equals."""
    return min(range(len(others)), key=lambda at: (distance(point, others[at]), at))


def likest(row: Row, others: Sequence[Row]) -> int:
    return by_score([cosine(row, other) for other in others])[0]
