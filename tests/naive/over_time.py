"""The methods that compare frames patch by patch, from docs/methods/video.md sections 5.1, 5.2, 5.6 and 5.7."""

import math
from typing import Any

from tests.naive.budget import Clip
from tests.naive.common import Token, allocate, by_score, cosine, mean, softmax, unit


def kept(clip: Clip, anchors: list[int]) -> list[Token]:
    return [Token(anchor, clip.row(anchor), [anchor]) for anchor in sorted(anchors)]


def evs(clip: Clip, config: Any, budget: int, ratio: float) -> list[Token]:
    """Section 5.1: the patches least like their own place one frame earlier."""
    change = []
    for patch in range(clip.patches):
        worse = sum((clip.a[0][other], other) <= (clip.a[0][patch], patch) for other in range(clip.patches))
        change.append(2 * worse / clip.patches if budget < clip.patches else math.inf)
    for frame in range(1, clip.frames):
        for patch in range(clip.patches):
            change.append(1 - cosine(clip.x[frame][patch], clip.x[frame - 1][patch]))
    return kept(clip, by_score(change)[:budget])


def dycoke(clip: Clip, config: Any, budget: int, ratio: float) -> list[Token]:
    """Section 5.2: of four frames one stays whole."""
    prune = min(1.0, (1 - ratio) * 4 / 3) if config.prune is None else config.prune
    anchors = []
    for frame in range(clip.frames):
        back = (0, 1, 2, 1)[frame % 4]
        patches = list(range(clip.patches))
        if back:
            likeness = [cosine(clip.x[frame][patch], clip.x[frame - back][patch]) for patch in patches]
            patches = by_score([-like for like in likeness])[: int((1 - prune) * clip.patches)]
        anchors += [frame * clip.patches + patch for patch in patches]
    return kept(clip, anchors)


def vcast(clip: Clip, config: Any, budget: int, ratio: float) -> list[Token]:
    """Section 5.7: budgets by how sharply the clip turns, patches by attention."""
    ways = [unit(mean(frame)) for frame in clip.x]
    turns = [1.0] * clip.frames
    for frame in range(1, clip.frames - 1):
        turns[frame] = 1 - cosine(ways[frame] - ways[frame - 1], ways[frame + 1] - ways[frame])
    least = min(config.least, budget // clip.frames, clip.patches)
    weights = softmax([turn / config.temperature for turn in turns])
    shares = allocate(budget - least * clip.frames, weights, clip.patches - least)
    anchors = []
    for frame, share in enumerate(shares):
        anchors += [frame * clip.patches + patch for patch in by_score(clip.a[frame])[: least + share]]
    return kept(clip, anchors)


def unicomp(clip: Clip, config: Any, budget: int, ratio: float) -> list[Token]:
    """Section 5.6: average like frames, pick unique patches, blend each with its neighbourhood."""
    groups = frame_groups(clip, config.frame_uniqueness, int(1 / ratio) + 1)
    x, metric = ([average(values, group) for group in groups] for values in (clip.x, clip.metric))
    if len(groups) * clip.patches <= budget:
        picks = [[(patch, [patch]) for patch in range(clip.patches)] for _ in groups]
    else:
        picks = [unique_patches(rows, config.spatial_uniqueness) for rows in metric]
        shares = pass_on(group_shares(clip, groups, budget), [len(some) for some in picks])
        picks = [some[:share] for some, share in zip(picks, shares, strict=True)]
    tokens = []
    for group, rows, some in zip(groups, x, picks, strict=True):
        held: set[int] = set()
        for patch, near in some:
            own = [other for other in near if other not in held]
            held |= set(near)
            members = [frame * clip.patches + other for frame in group for other in own]
            value = (rows[patch] + mean([rows[other] for other in near])) / 2
            tokens.append(Token(group[0] * clip.patches + patch, value, members))
    return tokens


def frame_groups(clip: Clip, apart: float, longest: int) -> list[list[int]]:
    means = [mean(frame) for frame in clip.x]
    groups = [[0]]
    for frame in range(1, clip.frames):
        if 1 - cosine(means[frame], means[groups[-1][0]]) <= apart and len(groups[-1]) < longest:
            groups[-1].append(frame)
        else:
            groups.append([frame])
    return groups


def average(values: list[list[Any]], group: list[int]) -> list[Any]:
    return [mean([values[frame][patch] for frame in group]) for patch in range(len(values[0]))]


def unique_patches(rows: list[Any], apart: float) -> list[tuple[int, list[int]]]:
    """The picked patches, the most unique first, each with all patches that it stands for."""
    n = len(rows)
    ways = [unit(row) for row in rows]
    like = [[float(a @ b) for b in ways] for a in ways]
    picks: list[tuple[int, list[int]]] = []
    gone: set[int] = set()
    for patch in by_score([-sum(row) / n for row in like]):
        if patch not in gone:
            near = [other for other in range(n) if other == patch or 1 - like[patch][other] < apart]
            picks.append((patch, near))
            gone |= set(near)
    return picks


def group_shares(clip: Clip, groups: list[list[int]], budget: int) -> list[int]:
    vectors = [clip.g[group[0]] for group in groups]
    means = [sum(cosine(a, b) for b in vectors) / len(vectors) for a in vectors]
    middle = sum(means) / len(means)
    weights = softmax([(middle - one) * math.sqrt(len(groups)) for one in means])
    return allocate(budget, weights, min(clip.patches, max(1, 2 * (budget // len(groups)))))


def pass_on(shares: list[int], picks: list[int]) -> list[int]:
    """Hand what some groups cannot use to the others, one by one, round after round."""
    given = [min(share, most) for share, most in zip(shares, picks, strict=True)]
    left = sum(shares) - sum(given)
    while left > 0 and any(have < most for have, most in zip(given, picks, strict=True)):
        for group, most in enumerate(picks):
            if given[group] < most and left > 0:
                given[group] += 1
                left -= 1
    return given
