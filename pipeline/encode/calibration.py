"""Similarities of a sample of a corpus as the tower sees it: what thresholds of reducers are taken from."""

import hashlib
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.decode.stage import Decode

if TYPE_CHECKING:  # torch loads when clips are measured, not when a flag is parsed
    import torch

    from pipeline.models.tower import Tower
    from reducers.thresholds import Sample

QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)


def draw(corpus: pa.Table, videos: int, seed: int = 0) -> pa.Table:
    """Return `videos` rows of a corpus (all, if there are no more), chosen by a hash of seed and id, in that order.

    Neither the order of the corpus nor what else is in it decides whether a video comes before another.
    """
    hashed = [hashlib.sha256(f"{seed}:{name}".encode(errors="replace")).hexdigest() for name in corpus["video_id"].to_pylist()]
    return corpus.take(sorted(range(len(hashed)), key=hashed.__getitem__)[:videos])


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured on the videos that could be used."""

    sample: "Sample | None"
    """None if there were none."""
    videos: int
    """How many were used."""
    failures: dict[str, str]
    """Class of failure by video id."""


def measure(drawn: pa.Table, make_decode: Callable[[], Decode], tower: "Tower", batch_clips: int = 8) -> Measured:
    """Decode some rows of `schema.CORPUS`, look at them with a tower, keep the cosines and drop the rest."""
    import torch

    from reducers.thresholds import Sample

    taken: list[dict[str, torch.Tensor]] = []
    failures: dict[str, str] = {}
    with closing(_clips(drawn, make_decode, batch_clips)) as parts:
        for part in parts:
            rows = part.to_pylist()
            good = [row for row in rows if row["error_class"] is None]
            cosines = _cosines([row["frames"] for row in good], tower)
            failures |= {row["video_id"]: row["error_class"] for row in rows if row["error_class"] is not None}
            failures |= {row["video_id"]: "ENCODE_FAILED" for row, one in zip(good, cosines, strict=True) if one is None}
            taken += [one for one in cosines if one is not None]
    if not taken:
        return Measured(sample=None, videos=0, failures=failures)
    values = {name: torch.cat([one[name] for one in taken]) for name in taken[0]}
    return Measured(sample=Sample(values=values, patches=tower.grid[0] * tower.grid[1]), videos=len(taken), failures=failures)


def _cosines(clips: Sequence[bytes], tower: "Tower") -> list["dict[str, torch.Tensor] | None"]:
    """Return what is measured of each clip of uint8 F*S*S*3; None where the tower gives a value that is not finite."""
    from pipeline.encode.batching import ends_of, frames_of
    from reducers.thresholds import measures

    if not clips:
        return []
    frames, lengths = frames_of(clips, tower.side_px)
    seen = tower(frames, frozenset(), ends_of(lengths))
    x_FND, found = seen.features.float(), []
    g_FD = x_FND.mean(1) if seen.cls is None else seen.cls.float()
    for start, end in seen.clip_ptr.unfold(0, 2, 1).tolist():
        finite = bool(x_FND[start:end].isfinite().all() and g_FD[start:end].isfinite().all())
        cosines = measures(x_FND[start:end], g_FD[start:end])
        found.append({name: values.cpu() for name, values in cosines.items()} if finite else None)
    return found


def _clips(drawn: pa.Table, make_decode: Callable[[], Decode], batch: int) -> Generator[pa.Table, None, None]:
    with make_decode() as decode:
        for start in range(0, drawn.num_rows, batch):
            yield decode(drawn.slice(start, batch))


def quantiles(sample: "Sample") -> dict[str, dict[str, float]]:
    """Return quantiles of each measure, by name and share."""
    from reducers.thresholds import below

    return {
        name: {f"{share:g}": round(below(values, share), 4) for share in QUANTILES} for name, values in sample.values.items()
    }
