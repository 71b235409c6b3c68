"""Every reducer as a loop over tokens, written from the papers' text: slow, plain, and apart from `reducers/`.

`NAIVE[name](video, config)` takes one clip as lists (`video_of`) and the config of a reducer; it returns what the reducer
should, token by token. Tests hold both equal; `framefold bench reducers` times one beside the other.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from tests.naive import budget, nest, over_time, per_frame, segments
from tests.naive.common import Token, Video, video_of
from tests.naive.tome import merge_step

__all__ = ["NAIVE", "Token", "Video", "merge_step", "video_of"]


def unicomp(video: Video, config: Any) -> list[Token]:
    """UniComp, on keys where they are the metric."""
    from reducers.methods.unicomp import UniComp

    return budget.run(video, config, over_time.unicomp, UniComp.keys if config.metric == "keys" else None)


NAIVE: Mapping[str, Callable[[Video, Any], list[Token]]] = {
    "none": per_frame.nothing,
    "sequential": per_frame.sequential,
    "spatial": per_frame.spatial,
    "prumerge": per_frame.prumerge,
    "prumerge+": per_frame.prumerge_plus,
    "visionzip": per_frame.visionzip,
    "hired": per_frame.hired,
    "trim": per_frame.trim,
    "evs": partial(budget.run, method=over_time.evs),
    "dycoke_ttm": partial(budget.run, method=over_time.dycoke),
    "fastvid": partial(budget.run, method=segments.fastvid),
    "holitom": partial(budget.run, method=segments.holitom),
    "flashvid": partial(budget.run, method=segments.flashvid),
    "unicomp": unicomp,
    "vcast": partial(budget.run, method=over_time.vcast),
    "nest": nest.nest,
}
