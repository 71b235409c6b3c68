"""What the reducers over a whole clip share: their budget, docs/methods/video.md section 4 rules 4 to 6, and CLS rows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from reducers.ops.clip_budget import ATTENTION
from tests.naive.common import Row, Token, Video, by_score, cosine, mean


@dataclass(frozen=True)
class Clip:
    """What a method sees: everything by frame, then patch."""

    x: list[list[Row]]
    a: list[list[float]]
    g: list[Row]
    metric: list[list[Row]]

    @property
    def frames(self) -> int:
        return len(self.x)

    @property
    def patches(self) -> int:
        return len(self.x[0])

    def row(self, anchor: int) -> Row:
        return self.x[anchor // self.patches][anchor % self.patches]

    def attention(self, anchor: int) -> float:
        return self.a[anchor // self.patches][anchor % self.patches]


Method = Callable[[Clip, Any, int, float], list[Token]]


def clip_of(video: Video, keys: Any = None) -> Clip:
    shares = []
    for frame in video.captures[ATTENTION]:
        total = sum(map(float, frame))
        shares.append([float(score) / total for score in frame])
    g = [mean(frame) for frame in video.x] if video.cls is None else video.cls
    return Clip(x=video.x, a=shares, g=g, metric=video.x if keys is None else video.captures[keys])


def run(video: Video, config: Any, method: Method, keys: Any = None) -> list[Token]:
    """Reduce a clip with a method, to its budget, with the CLS row of each frame where it is paid for."""
    clip = clip_of(video, keys)
    total = clip.frames * clip.patches
    wanted = config.keep or max(1, int(total * config.ratio))
    with_cls = config.keep_cls and video.cls is not None and wanted >= 2 * clip.frames
    budget = min(total, wanted - clip.frames if with_cls else wanted)
    ratio = config.ratio if config.ratio is not None and not with_cls else budget / total
    whole = [Token(anchor, clip.row(anchor), [anchor]) for anchor in range(total)]
    tokens = whole if budget == total else method(clip, config, budget, ratio)
    count_members(tokens)
    if config.exact:
        tokens = fit(tokens, clip, budget)
    return with_cls_rows(tokens, video) if with_cls else sorted(tokens, key=lambda token: token.anchor)


def count_members(tokens: list[Token]) -> None:
    """Give each token its size: a patch that several hold counts for each in equal shares."""
    holders: dict[int, int] = {}
    for token in tokens:
        for patch in token.members:
            holders[patch] = holders.get(patch, 0) + 1
    for token in tokens:
        token.size = sum(1 / holders[patch] for patch in token.members)


def fit(tokens: list[Token], clip: Clip, budget: int) -> list[Token]:
    """Rule 6: fold the least attended or add the best attended until the count is right."""
    tokens = sorted(tokens, key=lambda token: token.anchor)
    while len(tokens) > budget:
        least = min(tokens, key=lambda token: (clip.attention(token.anchor), token.anchor))
        tokens.remove(least)
        frame = least.anchor // clip.patches
        closest = min(abs(token.anchor // clip.patches - frame) for token in tokens)
        near = [token for token in tokens if abs(token.anchor // clip.patches - frame) == closest]
        into = near[by_score([cosine(token.row, least.row) for token in near])[0]]
        into.row = (into.size * into.row + least.size * least.row) / (into.size + least.size)
        into.size += least.size
    while len(tokens) < budget:
        taken = {token.anchor for token in tokens}
        absent = [anchor for anchor in range(clip.frames * clip.patches) if anchor not in taken]
        best = absent[by_score([clip.attention(anchor) for anchor in absent])[0]]
        for token in tokens:
            token.members = [patch for patch in token.members if patch != best]
        tokens.append(Token(best, clip.row(best), [best]))
        count_members(tokens)
    return tokens


def with_cls_rows(tokens: list[Token], video: Video) -> list[Token]:
    rows = []
    for frame in range(video.frames):
        rows.append(Token(-1, video.cls[frame]))
        rows += sorted((t for t in tokens if t.anchor // video.patches == frame), key=lambda token: token.anchor)
    return rows
