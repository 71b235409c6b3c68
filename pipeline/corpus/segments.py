"""Segments: parts of a long video that are entries of their own.

The id of a segment is the video's id and a media fragment, `name#t=30.000,60.000`, in seconds, start included, end not. Its
uri is the video's with the same fragment, and the decode stage samples inside it.

A file whose own name ends like that is no segment: in its id and uri the mark is written `%23`, and a `%23` there `%2523`, so
that two files never share an id and no file that of a segment. `names` escapes what cannot be stored before that. HTTP URLs are
escaped already and stay as they are.

Source of the notation: W3C Media Fragments URI 1.0, temporal dimension.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.corpus.span import Span
from pipeline.errors import ConfigError
from pipeline.redaction import redact
from pipeline.schema import CORPUS, ENCODED
from pipeline.storage.filesystem import create_exclusive, open_root, read_folder, remove

FRAGMENT = re.compile(r"(?P<name>.+)#t=(?P<start>\d+\.\d{3}),(?P<end>\d+\.\d{3})", re.DOTALL)
SHORTEST = 0.5
"""A last segment shorter than this share of the others belongs to the one before it."""

LEAST_S = 0.5
"""Shorter segments hold fewer frames than a clip samples, and an hour would be many thousand entries."""

LIKE_FRAGMENT = re.compile(r"(?P<name>.*)(?P<mark>#|%(?:25)*23)(?P<rest>t=\d+\.\d{3},\d+\.\d{3})", re.DOTALL)
"""What ends like a segment, escaped or not."""
HTTP = ("http://", "https://")

DURATIONS = pa.schema([*CORPUS, ("duration_s", pa.float64())])
"""Videos with their length, null where it cannot be told."""

FIELDS = ("uri", "source_hint", "duration_s")
MANY_FILES = 16
"""So many files of lengths become one."""



def span_of(name: str) -> tuple[str, Span | None]:
    """Return the id or uri of the video and the span of a segment; the name itself and None for a whole video."""
    found = FRAGMENT.fullmatch(name)
    if found is None:
        return name, None
    return found["name"], (float(found["start"]), float(found["end"]))


def escaped(name: str) -> str:
    """Return the id or uri of a whole file for its name: the same, but for one that ends like a segment."""
    found = None if name.startswith(HTTP) else LIKE_FRAGMENT.fullmatch(name)
    if found is None:
        return name
    return found["name"] + ("%23" if found["mark"] == "#" else f"%25{found['mark'][1:]}") + found["rest"]


def file_of(uri: str) -> str:
    """Return where the file of a uri lies, whole or a segment: the name that `escaped` was given."""
    uri = span_of(uri)[0]
    found = None if uri.startswith(HTTP) else LIKE_FRAGMENT.fullmatch(uri)
    if found is None or found["mark"] == "#":
        return uri
    return found["name"] + ("#" if found["mark"] == "%23" else f"%{found['mark'][3:]}") + found["rest"]


def check_seconds(seconds: float) -> None:
    """Raise ConfigError for a length that no segment should have."""
    if not (math.isfinite(seconds) and seconds >= LEAST_S):
        raise ConfigError(f"segments must be at least {LEAST_S:g} seconds long, got {seconds:g}")


def spans(duration_s: float, seconds: float) -> list[Span]:
    """Return the segments of a video, each `seconds` long but the last; its end is that of the video.

    Which segments there are depends on both numbers only, so ids stay as they are when a job runs again.
    """
    check_seconds(seconds)
    count = max(1, int(duration_s // seconds))
    if duration_s - count * seconds >= SHORTEST * seconds:
        count += 1
    starts = [number * seconds for number in range(count)]
    return list(zip(starts, [*starts[1:], max(duration_s, starts[-1])], strict=True))


def segment_rows(row: dict[str, Any], duration_s: float, seconds: float) -> list[dict[str, Any]]:
    """Return the rows of `schema.CORPUS` of the segments of a video."""
    marks = [f"#t={start:.3f},{end:.3f}" for start, end in spans(duration_s, seconds)]
    return [{**row, "video_id": row["video_id"] + mark, "uri": row["uri"] + mark} for mark in marks]


class Durations:
    """What is known of the lengths of videos, beside a token store, so that a nightly run need not look into every file.

    <root>/durations/<digest>.jsonl     uri, source_hint, duration_s; named by content, never changed

    A run adds a file now and then; where there are many, one that holds the content of all takes their place.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self.fs, root = open_root(url, storage_options)
        self.folder = f"{root}/durations"
        self.known: dict[tuple[str, str], float] = {}
        self.files: set[str] = set()
        """What this object has read or written."""
        for path, content in read_folder(self.fs, self.folder, ".jsonl").items():
            self.files.add(path)
            if hashlib.sha256(content).hexdigest() in path:  # what rotted is measured again
                self._take(map(json.loads, content.decode().splitlines()))

    def of(self, row: Mapping[str, Any]) -> float | None:
        """Return the length of a video in the state that storage tells of, None if it is not known."""
        return self.known.get(_state(row)) if row["source_hint"] != "{}" else None

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Remember rows of `DURATIONS`; those without a length, or of no known state, are asked for again next time."""
        kept = [(*_state(row), row["duration_s"]) for row in rows if row["source_hint"] != "{}"]
        found = [dict(zip(FIELDS, one, strict=True)) for one in kept if one[-1] is not None]
        if found:
            self._write(found)
            self._take(found)

    def tidy(self) -> None:
        """Put one file in the place of many. Runs that overlap may all do so: what a file says is elsewhere before it goes."""
        if len(self.files) < MANY_FILES:
            return
        old = set(self.files)
        new = self._write([dict(zip(FIELDS, (*state, length), strict=True)) for state, length in self.known.items()])
        for path in sorted(old - {new}):
            remove(self.fs, path)
        self.files = {new}

    def _write(self, rows: Iterable[Mapping[str, Any]]) -> str:
        lines = sorted(json.dumps(row) + "\n" for row in rows)
        content = "".join(lines).encode()
        path = f"{self.folder}/{hashlib.sha256(content).hexdigest()}.jsonl"
        create_exclusive(self.fs, path, content)
        self.files.add(path)
        return path

    def _take(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self.known |= {(row["uri"], row["source_hint"]): row["duration_s"] for row in rows}


def _state(row: Mapping[str, Any]) -> tuple[str, str]:
    return redact(row["uri"]), row["source_hint"]


def cut(
    corpus: pa.Table, seconds: float, durations: Durations, measure: Callable[[pa.Table], Iterator[pa.Table]]
) -> pa.Table:
    """Return rows of `schema.CORPUS` with the segments of each video in its place.

    A video whose length cannot be told stays whole, so that decoding gives its failure a class.

    Args:
        corpus: whole videos.
        seconds: length of a segment.
        durations: what is known already; what is measured is added.
        measure: returns rows of `DURATIONS`, table by table, of the videos it is given.
    """
    rows = corpus.to_pylist()
    lengths = [durations.of(row) for row in rows]
    unknown = corpus.filter(pa.array([length is None for length in lengths], pa.bool_()))
    measured: dict[str, float | None] = {}
    for table in measure(unknown) if unknown.num_rows else ():
        durations.add(table.to_pylist())
        measured |= {row["video_id"]: row["duration_s"] for row in table.to_pylist()}
    found: list[dict[str, Any]] = []
    for row, length in zip(rows, lengths, strict=True):
        found += _segments_of(row, measured.get(row["video_id"]) if length is None else length, seconds)
    durations.tidy()
    return pa.Table.from_pylist(found, schema=CORPUS)


def cut_known(corpus: pa.Table, seconds: float, durations: Durations) -> tuple[pa.Table, pa.Table]:
    """Return the segments of the videos whose length is stored, and the videos whose length is not; measures nothing.

    Args:
        corpus: rows of `schema.CORPUS`, whole videos.
        seconds: length of a segment.
        durations: stored lengths; not changed.
    """
    rows = corpus.to_pylist()
    lengths = [durations.of(row) for row in rows]
    known = [_segments_of(row, length, seconds) for row, length in zip(rows, lengths, strict=True) if length is not None]
    unmeasured = corpus.filter(pa.array([length is None for length in lengths], pa.bool_()))
    return pa.Table.from_pylist([one for video in known for one in video], schema=CORPUS), unmeasured


def _segments_of(row: dict[str, Any], length_s: float | None, seconds: float) -> list[dict[str, Any]]:
    """Return the segments of a video; the row itself where the length is not known or the row is a segment already."""
    if length_s is None or span_of(row["uri"])[1] is not None:
        return [row]
    return segment_rows(row, length_s, seconds)


def outdated(committed: pa.Table, corpus: pa.Table) -> pa.Table:
    """Return what takes the place of entries of earlier states of these videos: rows of `schema.ENCODED`, failures all.

    A film that was replaced by a shorter one has fewer segments; what is stored of the others would be served for ever. So
    would a whole film that is segments now, and the other way round.

    Args:
        committed: video_id and source_hint of what is committed.
        corpus: rows of `schema.CORPUS`, as they are to be encoded.
    """
    if not any(pc.any(pc.match_substring(ids, "#t=")).as_py() for ids in (committed["video_id"], corpus["video_id"])):
        return ENCODED.empty_table()
    listed = set(corpus["video_id"].to_pylist())
    now = {span_of(row["video_id"])[0]: (span_of(row["uri"])[0], row["source_hint"]) for row in corpus.to_pylist()}
    found = []
    for name, hint in zip(committed["video_id"].to_pylist(), committed["source_hint"].to_pylist(), strict=True):
        uri, state = now.get(span_of(name)[0], ("", "{}"))
        if name not in listed and state not in ("{}", hint):
            failure = {"error_class": "SUPERSEDED", "error": "segment no longer exists: the video was replaced"}
            found.append({"video_id": name, "uri": uri, "source_hint": state, **failure})
    return pa.Table.from_pylist(found, schema=ENCODED)
