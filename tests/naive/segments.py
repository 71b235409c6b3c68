"""The methods that cut a clip into segments, from docs/methods/video.md sections 5.3 to 5.5."""

import math
from typing import Any

from tests.naive.budget import Clip
from tests.naive.common import Row, Token, by_score, cosine, dense_points, likest, mean, nearest


def segments(likeness: list[float], least: int, tau: float) -> list[list[int]]:
    """Cut between the least like neighbours, and between all below tau."""
    cuts = set(by_score([-like for like in likeness])[: least - 1]) | {at for at, like in enumerate(likeness) if like < tau}
    parts = [[0]]
    for frame in range(1, len(likeness) + 1):
        if frame - 1 in cuts:
            parts.append([frame])
        else:
            parts[-1].append(frame)
    return parts


def fastvid(clip: Clip, config: Any, budget: int, ratio: float) -> list[Token]:
    """Section 5.3."""
    like = [cosine(clip.g[frame], clip.g[frame + 1]) for frame in range(clip.frames - 1)]
    count = int(clip.patches * ratio)
    contexts = int(count * config.context_share)
    tokens = []
    for segment in segments(like, config.segments or math.ceil(clip.frames / 4), config.tau):
        free = []
        for frame in segment:
            best = by_score(clip.a[frame])
            salient = [frame * clip.patches + patch for patch in best[: count - contexts]]
            tokens += [Token(anchor, clip.row(anchor), [anchor]) for anchor in salient]
            free.append([frame * clip.patches + patch for patch in sorted(best[count - contexts :])])
        hosts = list(range(len(segment) - 1, -1, -config.stride))
        for host in hosts:
            rows = [clip.row(anchor) for anchor in free[host]]
            m = min(contexts * len(segment) // len(hosts), len(rows))
            if m:
                centres = [free[host][at] for at in dense_points(rows, m, min(4, len(rows)))]
                tokens += contexts_of(clip, centres, [anchor for frame in free for anchor in frame], config.beta)
    return tokens


def contexts_of(clip: Clip, centres: list[int], free: list[int], beta: float) -> list[Token]:
    assigned: dict[int, list[int]] = {centre: [] for centre in centres}
    for anchor in free:
        best = anchor if anchor in assigned else centres[likest(clip.row(anchor), [clip.row(c) for c in centres])]
        assigned[best].append(anchor)
    tokens = []
    for centre, members in assigned.items():
        own = max(beta, 1 / (len(members) + 1))
        value = own * clip.row(centre) + (1 - own) * mean([clip.row(member) for member in members])
        tokens.append(Token(centre, value, members))
    return tokens


def holitom(clip: Clip, config: Any, budget: int, ratio: float) -> list[Token]:
    """Section 5.4."""
    same = [
        [cosine(clip.x[frame][patch], clip.x[frame + 1][patch]) > config.tau for patch in range(clip.patches)]
        for frame in range(clip.frames - 1)
    ]

    def still(start: int, end: int) -> list[int]:
        if start == end:
            return []
        return [patch for patch in range(clip.patches) if all(same[frame][patch] for frame in range(start, end))]

    spans, gain = best_windows(clip.frames, still, config.max_window or clip.frames)
    share = min(1.0, ratio / (1 - gain / (clip.frames * clip.patches)))
    tokens = []
    for start, end in spans:
        static = still(start, end)
        rows = [mean([clip.x[frame][patch] for frame in range(start, end + 1)]) for patch in static]
        near = max(1, min(max(2, config.neighbours), len(static)))
        for centre, value, joined in merged(rows, round(len(static) * share), near, config.beta):
            members = [f * clip.patches + static[at] for f in range(start, end + 1) for at in joined]
            tokens.append(Token(start * clip.patches + static[centre], value, members))
        for frame in range(start, end + 1):
            changing = [patch for patch in range(clip.patches) if patch not in static]
            tokens += changing_tokens(clip, frame, changing, math.ceil(len(changing) * share), config)
    return tokens


def changing_tokens(clip: Clip, frame: int, changing: list[int], count: int, config: Any) -> list[Token]:
    plain = round(count * (1 - config.context_share))
    order = [changing[at] for at in by_score([clip.a[frame][patch] for patch in changing])]
    first = frame * clip.patches
    tokens = [Token(first + patch, clip.x[frame][patch], [first + patch]) for patch in order[:plain]]
    if config.context_share > 0:
        rest = sorted(order[plain:])
        near = max(1, min(max(2, config.neighbours), len(rest)))
        rows = [clip.x[frame][patch] for patch in rest]
        for centre, value, joined in merged(rows, count - plain, near, config.beta):
            tokens.append(Token(first + rest[centre], value, [first + rest[at] for at in joined]))
    return tokens


def best_windows(frames: int, still: Any, longest: int) -> tuple[list[tuple[int, int]], int]:
    """The partition that saves most: try every last window, single frames first, then the shorter ones."""
    best: list[tuple[int, list[tuple[int, int]]]] = [(0, [])]
    for end in range(frames):
        options = []
        for window in range(1, min(longest, end + 1) + 1):
            start = end - window + 1
            gain, spans = best[start]
            options.append((gain + (window - 1) * len(still(start, end)), [*spans, (start, end)]))
        best.append(max(options, key=lambda option: option[0]))
    return best[-1][1], best[-1][0]


def merged(rows: list[Row], count: int, near: int, beta: float | None) -> list[tuple[int, Row, list[int]]]:
    """Merge rows into their dense points: centre, value and who joined, the centre too."""
    if not rows or not count:
        return []
    centres = dense_points(rows, count, near)
    joined: dict[int, list[int]] = {centre: [] for centre in centres}
    for at, row in enumerate(rows):
        if at not in joined:
            joined[centres[nearest(row, [rows[centre] for centre in centres])]].append(at)
    found = []
    for centre, others in joined.items():
        value = rows[centre]
        if others and beta is None:
            value = mean([rows[at] for at in [centre, *others]])
        elif others:
            value = beta * value + (1 - beta) * mean([rows[at] for at in others])
        found.append((centre, value, [centre, *others]))
    return found


def flashvid(clip: Clip, config: Any, budget: int, ratio: float) -> list[Token]:
    """Section 5.5."""
    means = [mean(frame) for frame in clip.x]
    like = [cosine(means[frame], means[frame + 1]) for frame in range(clip.frames - 1)]
    count = min(clip.patches, math.ceil(clip.patches * ratio))
    tokens = []
    for segment in segments(like, config.segments or math.ceil(clip.frames / 4), config.segment_tau):
        centre = mean([means[frame] for frame in segment])
        picked: dict[int, list[int]] = {}
        for frame in segment:
            score = clip.a[frame]
            if config.selection == "v2":
                score = [a * max(0.0, float(x @ centre)) for a, x in zip(score, clip.x[frame], strict=True)]
            picked[frame] = spread_patches(clip.x[frame], score, math.ceil(count * config.alpha))
            tokens += [plain(clip, frame, patch) for patch in picked[frame]]
        trees = linked(clip, segment, picked, count, config.tau)
        roots = {frame: [root for root in trees if root // clip.patches == frame] for frame in segment}
        wanted, most = (count - len(picked[segment[0]])) * len(segment), len(trees)
        for frame in segment:
            clusters = math.ceil(len(roots[frame]) * wanted / most) if wanted < most else len(roots[frame])
            rows = [mean([clip.row(member) for member in trees[root]]) for root in roots[frame]]
            for at, value, joined in merged(rows, clusters, min(7, len(rows)), None):
                members = [member for other in joined for member in trees[roots[frame][other]]]
                tokens.append(Token(roots[frame][at], value, members))
    return tokens


def plain(clip: Clip, frame: int, patch: int) -> Token:
    anchor = frame * clip.patches + patch
    return Token(anchor, clip.row(anchor), [anchor])


def spread_patches(x: list[Row], score: list[float], count: int) -> list[int]:
    """Max-min diversity, the score of the new patch as a factor."""
    n = len(x)
    apart = [[(1 - cosine(x[i], x[j])) * score[j] for j in range(n)] for i in range(n)]
    if not count:
        return []
    close = [sorted(apart[i][j] for i in range(n))[min(1, n - 1)] for j in range(n)]
    picked = [by_score(close)[0]]
    while len(picked) < min(count, n):
        close = [min(apart[i][j] for i in picked) for j in range(n)]
        picked.append(next(j for j in by_score(close) if j not in picked))
    return sorted(picked)


def linked(clip: Clip, segment: list[int], picked: dict[int, list[int]], count: int, tau: float) -> dict[int, list[int]]:
    """The trees of a segment: root to members, links to the likest free patch of the frame before."""
    best: dict[int, tuple[float, int]] = {}
    for frame in segment[1:]:
        before = [patch for patch in range(clip.patches) if patch not in picked[frame - 1]]
        for patch in range(clip.patches):
            if patch not in picked[frame] and before:
                alike = [cosine(clip.x[frame][patch], clip.x[frame - 1][other]) for other in before]
                at = by_score(alike)[0]
                best[frame * clip.patches + patch] = alike[at], (frame - 1) * clip.patches + before[at]
    room = len(segment) * (clip.patches - count)
    if sum(like > tau for like, _ in best.values()) > room:
        tau = sorted((like for like, _ in best.values()), reverse=True)[room - 1] if room else math.inf
    trees: dict[int, list[int]] = {}
    for frame in segment:
        for patch in range(clip.patches):
            anchor = root = frame * clip.patches + patch
            while root in best and best[root][0] > tau:
                root = best[root][1]
            if patch not in picked[frame]:
                trees.setdefault(root, []).append(anchor)
    return trees
