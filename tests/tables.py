"""Tables as the stages make them, with seeded content."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.schema import CORPUS, ENCODED

SPEC: dict[str, Any] = {"schema_version": 1, "reducer": {"name": "none", "version": 1}, "tower": {"weights_sha256": "t"}}


def corpus(*ids: str, hint: str = '{"size":1}') -> pa.Table:
    rows = [{"video_id": name, "uri": f"/videos/{name}.mp4", "source_hint": hint} for name in ids]
    return pa.Table.from_pylist(rows, schema=CORPUS)


def row(name: str, seed: int = 0, tokens: int = 6, width: int = 4, **changes: Any) -> dict[str, Any]:
    """One encoded video; `seed` stands for the content of its source."""
    random = np.random.default_rng([seed, *name.encode()])
    return {
        "video_id": name,
        "uri": f"/videos/{name}.mp4",
        "source_hint": '{"size":1}',
        "features": random.normal(size=(tokens, width)).astype("<f2").tobytes(),
        "shape": [tokens, width],
        "dtype": "float16",
        "frame": np.arange(tokens, dtype="<i2").tobytes(),
        "anchor": np.arange(tokens, dtype="<i4").tobytes(),
        "kind": np.zeros(tokens, dtype=np.uint8).tobytes(),
        "size": np.ones(tokens, dtype="<f4").tobytes(),
        "position": np.zeros((tokens, 3), dtype="<f4").tobytes(),
        "grid": [8, 16, 16],
        "timestamps_s": [0.0, 0.5],
        "decoder": "pyav",
        "source_sha256": f"{seed:064x}",
        "source_bytes": 100 + seed,
        "substituted_frames": 0,
        "error_class": None,
        "error": None,
        **changes,
    }


def failed(name: str, code: str = "CORRUPT", seed: int | None = 0, **changes: Any) -> dict[str, Any]:
    """One video that could not be decoded."""
    empty = dict.fromkeys(ENCODED.names)
    known = {} if seed is None else {"source_sha256": f"{seed:064x}", "source_bytes": 100 + seed}
    base = {"video_id": name, "uri": f"/videos/{name}.mp4", "source_hint": '{"size":1}'}
    return {**empty, **base, **known, "error_class": code, "error": "why", **changes}


def encoded(rows: Sequence[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=ENCODED)
