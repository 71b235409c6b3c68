"""Videos known by their content: a renamed, copied or touched file is listed again without being decoded."""

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pyarrow as pa

from pipeline.corpus.fetch import content_sha256
from pipeline.corpus.segments import file_of, span_of
from pipeline.redaction import redact
from pipeline.schema import CORPUS
from pipeline.store.token_store import TokenStore

VIDEOS_PER_FRAGMENT = 1024
"""Listed together: what an interruption may cost is that many files read again."""


def adopt(
    store: TokenStore, todo: pa.Table, storage_options: Mapping[str, Any] | None = None, readers: int = 8
) -> pa.Table:
    """List the videos of a corpus whose content is committed, under whatever id; return the others, to be encoded.

    Each file that can be known, by its size, is read once, many at a time. What is listed is a row of the index that names
    the entry there is and the id that it was encoded under; no token is written.
    """
    kept = []
    for videos, entries in _matched(store, todo, storage_options, readers):
        pairs = zip(videos.to_pylist(), entries, strict=True)
        if listed := [_listed(store, row, entry) for row, entry in pairs if entry is not None]:
            store.index.append(listed)
        kept.append(videos.filter(pa.array([entry is None for entry in entries], pa.bool_())))
    store.refresh()
    return pa.concat_tables([CORPUS.empty_table(), *kept])


def not_adoptable(
    store: TokenStore, todo: pa.Table, storage_options: Mapping[str, Any] | None = None, readers: int = 8
) -> pa.Table:
    """Return the videos of a corpus that `adopt` would return. The same files are read; nothing is written."""
    matched = _matched(store, todo, storage_options, readers)
    kept = [videos.filter(pa.array([entry is None for entry in entries], pa.bool_())) for videos, entries in matched]
    return pa.concat_tables([CORPUS.empty_table(), *kept])


def _matched(
    store: TokenStore, todo: pa.Table, storage_options: Mapping[str, Any] | None, readers: int
) -> Iterator[tuple[pa.Table, list[dict[str, Any] | None]]]:
    """Yield slices of a corpus, each with the index row of the same content for every video, None where there is none."""
    committed = [row for row in store.index.with_status("committed").to_pylist() if _is_whole(row)]
    known = {row["source_sha256"]: row for row in reversed(committed) if row["source_sha256"]}  # the lowest id is the last word
    sizes = {row["source_bytes"] for row in committed}
    with ThreadPoolExecutor(readers) as threads:
        for start in range(0, todo.num_rows, VIDEOS_PER_FRAGMENT):
            videos = todo.slice(start, VIDEOS_PER_FRAGMENT)
            digests = threads.map(partial(_digest, sizes, storage_options), videos.to_pylist())
            yield videos, [None if digest is None else known.get(digest) for digest in digests]


def _is_whole(row: Mapping[str, Any]) -> bool:
    """Tell whether a row is about a whole file: a segment has the digest of its file, and tokens of a part of it."""
    return span_of(row["uri"])[1] is None


def _digest(sizes: set[int], storage_options: Mapping[str, Any] | None, video: Mapping[str, Any]) -> str | None:
    """Return the SHA-256 of a video, None where its size is enough to say that it is not known."""
    size = json.loads(video["source_hint"]).get("size")
    unknown = not _is_whole(video) or (size is not None and size not in sizes)
    return None if unknown else content_sha256(file_of(video["uri"]), storage_options)


def _listed(store: TokenStore, video: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row that names the entry of a known content for a video."""
    own = store.index.get(video["video_id"])
    stored_id = known["stored_id"] or known["video_id"]
    return {
        **known,
        **video,
        "uri": redact(video["uri"]),
        "stored_id": None if stored_id == video["video_id"] else stored_id,
        "generation": 1 + (own["generation"] if own else 0),
    }
