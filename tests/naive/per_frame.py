"""The reducers that look at one frame, token by token, from docs/methods/frames.md section 5."""

import math
from typing import Any

import numpy as np

from reducers.base import Capture
from tests.naive.common import Row, Token, Video, allocate, by_score, cosine, likest, mean, outliers, softmax, unit


def cls_token(video: Video, frame: int) -> list[Token]:
    return [] if video.cls is None else [Token(-1, video.cls[frame])]


def plain(video: Video, frame: int, patch: int) -> Token:
    return Token(frame * video.patches + patch, video.x[frame][patch], size=1)


def nothing(video: Video, config: Any) -> list[Token]:
    """All patches, CLS in front of each frame."""
    tokens = []
    for frame in range(video.frames):
        tokens += cls_token(video, frame) if config.keep_cls else []
        tokens += [plain(video, frame, patch) for patch in range(video.patches)]
    return tokens


def sequential(video: Video, config: Any) -> list[Token]:
    """Section 5.1."""
    tokens = []
    for frame in range(video.frames):
        tokens += [plain(video, frame, patch) for patch in range(video.patches) if patch < config.k]
    return tokens


def spatial(video: Video, config: Any) -> list[Token]:
    """Section 5.2, with rows and columns, or with a count that has a shape."""
    high, wide = video.grid
    rows, columns = config.rows, config.cols
    if rows is None and config.k >= high * wide:
        rows, columns = high, wide
    if rows is None:
        shapes = [(r, config.k // r) for r in range(1, high + 1) if config.k % r == 0 and config.k // r <= wide]
        gaps = [abs(math.log(r / c * wide / high)) for r, c in shapes]
        if not gaps or min(gaps) > math.log(2) + 1e-12:
            chosen = [math.floor(i * high * wide / config.k) for i in range(config.k)]
            return [plain(video, frame, patch) for frame in range(video.frames) for patch in chosen]
        rows, columns = next(shape for shape, gap in zip(shapes, gaps, strict=True) if gap <= min(gaps) + 1e-9)
    tokens = []
    for frame in range(video.frames):
        for i in range(rows):
            for j in range(columns):
                tokens.append(plain(video, frame, math.floor(i * high / rows) * wide + math.floor(j * wide / columns)))
    return tokens


def prumerge(video: Video, config: Any, *, plus: bool = False) -> list[Token]:
    """Sections 5.3 and 5.4, for each frame, or for all frames as one row."""
    attention = video.captures[Capture(kind="cls_attn", block=config.score_block, heads=config.heads)]
    keys = video.captures[Capture(kind="keys", block=config.score_block, heads="concat")]
    places = [[(frame, patch) for patch in range(video.patches)] for frame in range(video.frames)]
    if config.scope == "clip":
        places = [[place for frame in places for place in frame]]
    tokens = []
    for row in places:
        x, k, a = ([values[frame][patch] for frame, patch in row] for values in (video.x, keys, attention))
        chosen = prumerge_choice([float(score) for score in a], config, plus=plus)
        for centre in chosen:
            frame, patch = row[centre]
            tokens.append(Token(frame * video.patches + patch, prumerge_value(centre, x, k, a, config), size=1))
        if config.residual:
            rest = [at for at in range(len(row)) if at not in chosen]
            residual = np.zeros_like(x[0])
            for at in rest:
                residual = residual + a[at] * x[at]
            tokens.append(Token(-1, residual, size=len(rest)))
    return tokens


def prumerge_choice(a: list[float], config: Any, *, plus: bool) -> list[int]:
    n, order = len(a), by_score(a)
    count = outliers(a, config.iqr_factor) if config.adaptive else int(n * config.ratio)
    chosen = order[:count]
    if plus and config.adaptive:
        stride = max(1, n // max(count, 1) // 3)
        chosen = chosen + [at for at in range(0, n - 1, stride) if at not in chosen]
    elif plus:
        step = int(1 / config.ratio)
        chosen = chosen + [at for at in range(step // 2, n - 1, step) if at not in chosen]
        chosen = chosen + [at for at in order if at not in chosen]
        chosen = chosen[: 2 * count if config.residual else max(1, 2 * count)]
    elif not config.residual and not chosen:
        chosen = order[:1]
    return sorted(chosen) if config.order == "spatial" else chosen


def prumerge_value(centre: int, x: list[Row], k: list[Row], a: list[float], config: Any) -> Row:
    others = [at for at in range(len(x)) if at != centre]
    likeness = [cosine(k[centre], k[at]) for at in others]
    taken = [others[at] for at in by_score(likeness)]
    if config.merge == "mean":
        group = [centre, *taken[: max(0, config.knn - 1)]]
        weights = sum(a[at] for at in group)
        return sum(a[at] * x[at] for at in group) / weights
    value = x[centre]
    for at in taken[: config.knn]:
        value = value + a[at] * x[at]
    return value


def prumerge_plus(video: Video, config: Any) -> list[Token]:
    return prumerge(video, config, plus=True)


def visionzip(video: Video, config: Any) -> list[Token]:
    """Section 5.5."""
    kind = "received" if config.score == "received" else "cls_attn"
    attention = video.captures[Capture(kind=kind, block="selected", heads="sum")]
    keys = video.captures[Capture(kind="keys", block="selected", heads="mean")]
    tokens = []
    for frame in range(video.frames):
        x, first = video.x[frame], cls_token(video, frame) if config.keep_cls else []
        dominant = sorted(by_score(attention[frame])[: config.dominant - len(first)])
        rest = [patch for patch in range(video.patches) if patch not in dominant]
        step = max(1, len(rest) // config.contextual) if config.contextual else 1
        targets = rest[::step][: config.contextual]
        assigned: dict[int, list[Row]] = {target: [] for target in targets}
        for patch in rest:
            if patch not in assigned and targets:
                best = targets[likest(keys[frame][patch], [keys[frame][target] for target in targets])]
                assigned[best].append(x[patch])
        tokens += first + [plain(video, frame, patch) for patch in dominant]
        for target, rows in assigned.items():
            value = x[target] + mean(rows) if rows else x[target]
            if config.merge == "mean":
                value = mean([x[target], *rows])
            tokens.append(Token(frame * video.patches + target, value, size=1 + len(rows)))
    return tokens


def hired(video: Video, config: Any) -> list[Token]:
    """docs/methods/frames.md section 5.7 in its video form of section 6, all frames alike."""
    attention = video.captures[Capture(kind="cls_attn", block="selected", heads="sum")]
    total = max(1, int(video.frames * video.patches * config.rate))
    budgets = allocate(total, [1.0] * video.frames, video.patches)
    tokens = []
    for frame, budget in enumerate(budgets):
        kept = set(by_score(attention[frame])[:budget])
        if config.spatial_tokens:
            kept |= set(range(0, video.patches - 1, max(1, video.patches // config.spatial_tokens)))
        tokens += [plain(video, frame, patch) for patch in sorted(kept)]
    return tokens


def trim(video: Video, config: Any) -> list[Token]:
    """Section 5.6, for each frame, or for all frames as one row."""
    places = [[(frame, patch) for patch in range(video.patches)] for frame in range(video.frames)]
    if config.scope == "clip":
        places = [[place for frame in places for place in frame]]
    tokens = []
    for row in places:
        scores = []
        for frame, patch in row:
            v = video.joint[frame][patch]
            scores.append(float(unit(v) @ unit(video.text)) if config.score == "cosine" else -float(v @ video.text))
        shares = softmax(scores)
        count = outliers(shares, config.iqr_factor) if config.ratio is None else int(len(row) * config.ratio)
        kept = sorted(by_score(shares)[: count if config.aggregate else max(1, count)])
        tokens += [plain(video, *row[at]) for at in kept]
        rest = [video.x[row[at][0]][row[at][1]] for at in range(len(row)) if at not in kept]
        if config.aggregate and rest:
            tokens.append(Token(-1, mean(rest), size=len(rest)))
    return tokens
