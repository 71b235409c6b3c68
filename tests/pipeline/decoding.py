"""The test videos, and a corpus of files."""

from pathlib import Path

import pyarrow as pa

from pipeline.schema import CORPUS

VIDEOS = Path(__file__).parents[1] / "videos"


def corpus(*uris: str) -> pa.Table:
    rows = [{"video_id": uri, "uri": uri, "source_hint": "{}"} for uri in uris]
    return pa.Table.from_pylist(rows, schema=CORPUS)
