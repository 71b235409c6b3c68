"""`nest` from docs/methods/video.md sections 7.1 and 7.2: plain greedy that looks at every patch for every rank.

Kernel and mass are rounded to 2**-16, as `reducers.nest.order` says it departs.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tests.naive.budget import clip_of, count_members, with_cls_rows
from tests.naive.common import Row, Token, Video, length, mean


@dataclass
class Ordered:
    """A clip with its order: everything by rank but the members, which are ids."""

    ids: list[int]
    rows: list[Row]
    weights: list[float]
    parents: list[int]
    links: list[bool]
    members: list[list[int]]
    margin: float
    """Least lead of a choice over the next best one."""


def nest(video: Video, config: Any) -> list[Token]:
    """Order, fold, and put CLS rows in front where they are paid for."""
    found = order(video, config)
    total, wanted = video.frames * video.patches, config.keep or config.superset
    with_cls = config.keep_cls and video.cls is not None and wanted >= 2 * video.frames
    budget = min(len(found.ids), wanted - video.frames if with_cls else wanted, total)
    tokens = fold(found, max(1, budget), config.omega)
    return with_cls_rows(tokens, video) if with_cls else sorted(tokens, key=lambda token: token.anchor)


def rounded(value: float) -> float:
    return round(value * 2**16) / 2**16


def directions(video: Video) -> list[Row]:
    """Section 7.1, 1."""
    rows = [row for frame in video.x for row in frame]
    centre, ways = mean(rows), []
    for row in rows:
        apart = row - centre
        ways.append(0 * apart if length(apart) < 1e-6 * length(row) else apart / length(apart))
    return ways


def masses(video: Video, ways: list[Row], config: Any) -> Row:
    """Section 7.1, 2 and 3."""
    found = []
    for frame, shares in enumerate(clip_of(video).a):
        for patch, share in enumerate(shares):
            at = frame * video.patches + patch
            change = 1.0 if frame == 0 else 1 - min(1.0, max(0.0, float(ways[at] @ ways[at - video.patches])))
            attended = 0.3 + 0.7 * min(video.patches * share, config.cap)
            found.append(rounded(attended * (config.still + (1 - config.still) * change)))
    return np.array(found)


def kernel(video: Video, ways: list[Row], config: Any) -> list[Row]:
    """Section 7.1, 4: what each patch explains of each other, one array per patch."""
    memory = config.memory or video.frames / 4
    rows = []
    for i, way in enumerate(ways):
        row = np.zeros(len(ways))
        for j, other in enumerate(ways):
            gap = abs(i // video.patches - j // video.patches)
            row[j] = rounded(max(0.0, float(way @ other)) ** config.gamma * math.exp(-gap / memory))
        row[i] = 1.0
        rows.append(row)
    return rows


def order(video: Video, config: Any) -> Ordered:
    """Section 7.1."""
    ways = directions(video)
    mass, explains = masses(video, ways, config), kernel(video, ways, config)
    ids, margin = ranks(explains, mass, video, config)
    found = Ordered(ids, [], [1.0] * len(ids), [0] * len(ids), [False] * len(ids), [[at] for at in ids], margin)
    for rank, at in enumerate(ids[1:], start=1):
        found.parents[rank] = max(range(rank), key=lambda q: (explains[ids[q]][at], -q))
        found.links[rank] = float(ways[at] @ ways[ids[found.parents[rank]]]) >= config.gate
    rows = [row for frame in video.x for row in frame]
    taken: list[list[Row]] = [[] for _ in ids]
    for at in sorted(set(range(len(ways))) - set(ids)):
        rank = max(range(len(ids)), key=lambda t: (explains[ids[t]][at], -t))
        if float(ways[at] @ ways[ids[rank]]) >= config.gate:
            taken[rank].append(rows[at])
            found.members[rank].append(at)
    for rank, at in enumerate(ids):
        found.weights[rank] = 1 + config.omega * len(taken[rank])
        total = rows[at]
        for row in taken[rank]:
            total = total + config.omega * row
        found.rows.append(total / found.weights[rank])
    return found


def ranks(explains: list[Row], mass: Row, video: Video, config: Any) -> tuple[list[int], float]:
    """Section 7.1, 5 and 6."""
    total, frames = len(mass), video.frames
    best, ids, margin = np.zeros(total), [], math.inf
    had = [0] * frames
    while len(ids) < min(config.superset, total):
        rank, gains = len(ids), {}
        for at in range(total):
            if rank < config.spread * frames and had[at // video.patches] >= rank // frames + 1:
                continue
            if at not in ids:
                gains[at] = float(mass @ np.maximum(explains[at] - best, 0))
        first, *others = sorted(gains, key=lambda at: (-gains[at], at))
        margin = min([margin, *(gains[first] - gains[at] for at in others[:1])])
        ids.append(first)
        had[first // video.patches] += 1
        best = np.maximum(best, explains[first])
    return ids, margin


def fold(found: Ordered, budget: int, omega: float) -> list[Token]:
    """Section 7.2."""
    rows, weights, members = list(found.rows), list(found.weights), [list(some) for some in found.members]
    for rank in range(len(rows) - 1, budget - 1, -1):
        if found.links[rank]:
            into, share = found.parents[rank], omega * weights[rank]
            rows[into] = (weights[into] * rows[into] + share * rows[rank]) / (weights[into] + share)
            weights[into] += share
            members[into] += members[rank]
    tokens = [Token(found.ids[rank], rows[rank], members[rank]) for rank in range(budget)]
    count_members(tokens)
    return tokens


def certain(video: Video, config: Any) -> bool:
    """Whether no choice was so close that rounding could have made another."""
    return order(video, replace(config)).margin > 1e-6
