"""The decode stage: videos in, square uint8 clips out. A bad video becomes a row with a class and disturbs nobody."""

import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.corpus.fetch import Fetched, fetch
from pipeline.corpus.segments import DURATIONS, file_of, span_of
from pipeline.corpus.span import Span
from pipeline.decode.config import DecodeConfig
from pipeline.decode.tempdirs import scratch, sweep
from pipeline.errors import VideoError
from pipeline.redaction import redact, secrets_of
from pipeline.schema import DECODED


class Decode:
    """Stage, CPU. Takes rows of `schema.CORPUS`, returns rows of `schema.DECODED`, same order.

    Decoding runs in a child process with a deadline and a memory limit; see `worker_client`. Close it, or use it in a
    `with` statement, to end the child at once; it ends with its parent anyway.
    """

    def __init__(self, config: DecodeConfig, side_px: int = 224, storage_options: Mapping[str, Any] | None = None) -> None:
        from pipeline.decode.worker_client import DecodeChild

        self.config = config
        self.storage_options = dict(storage_options or {})
        self.secrets = secrets_of(self.storage_options)
        self.child = DecodeChild(config, side_px)
        self.held = Held()
        sweep()

    def __call__(self, videos: pa.Table) -> pa.Table:
        """Return the videos with frames, or with the class of their failure. Secrets in a URI stay behind."""
        rows = [row for uri, some in _by_file(videos) for row in self._decoded(uri, some)]
        return pa.Table.from_pylist(rows, schema=DECODED)

    def measure(self, videos: pa.Table) -> pa.Table:
        """Return rows of `segments.DURATIONS`: how long each video is, null where that cannot be told."""
        rows = [{**row, "duration_s": self._duration(uri)} for uri, some in _by_file(videos) for row in some]
        return pa.Table.from_pylist(rows, schema=DURATIONS)

    def __enter__(self) -> "Decode":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child process, and let go of the file at work."""
        self.child.close()
        self.held.let_go()

    def _decoded(self, uri: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the rows about one file, which is fetched once, with their frames.

        A file that segments are cut from is kept until another is asked for: its next ones are in the next table.
        """
        spans = [span_of(row["uri"])[1] for row in rows]
        fetched = self._at_hand(uri, rows[0]["source_hint"])
        outcomes = [self._outcome(fetched, span) for span in spans]
        if None in spans:
            self.held.let_go()
        return [{**row, "uri": redact(row["uri"]), **outcome} for row, outcome in zip(rows, outcomes, strict=True)]

    def _at_hand(self, uri: str, hint: str) -> Fetched | VideoError:
        """Return the file that is held, or fetch another in its place."""
        if self.held.file is None or self.held.state != (uri, hint):
            self.held.let_go()
            fetched = self._fetched(uri, self.held.folder())
            if isinstance(fetched, VideoError):
                self.held.let_go()
                return fetched
            self.held.state, self.held.file = (uri, hint), fetched
        return self.held.file

    def _fetched(self, uri: str, folder: Path) -> Fetched | VideoError:
        try:
            return fetch(file_of(uri), folder / "video", self.config.max_bytes, self.storage_options)
        except VideoError as error:
            return error

    def _duration(self, uri: str) -> float | None:
        with scratch() as folder:
            fetched = self._fetched(uri, folder)
            try:
                return None if isinstance(fetched, VideoError) else self.child.measure(fetched.path, fetched.demuxer)
            except VideoError:
                return None

    def _outcome(self, fetched: Fetched | VideoError, span: Span | None) -> dict[str, Any]:
        if isinstance(fetched, VideoError):
            return self._failure(fetched)
        source = {"source_sha256": fetched.sha256, "source_bytes": fetched.bytes}
        try:
            return {**source, **self.child.read(fetched.path, fetched.demuxer, span)}
        except VideoError as error:
            return {**source, **self._failure(error)}

    def _failure(self, error: VideoError) -> dict[str, Any]:
        return {"error_class": error.code, "error": redact(error.detail, self.secrets)[:500]}


class Held:
    """The file at work, in a private folder that goes with it, or with this object."""

    def __init__(self) -> None:
        self.state: tuple[str, str] | None = None
        """Its uri, and what storage told of it."""
        self.file: Fetched | None = None
        self.folders = ExitStack()
        weakref.finalize(self, self.folders.close)

    def folder(self) -> Path:
        """Return a new folder."""
        return self.folders.enter_context(scratch())

    def let_go(self) -> None:
        """Remove the file and its folder, if there is one."""
        self.state = self.file = None
        self.folders.close()


def _by_file(videos: pa.Table) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield neighbouring rows that are about one file together: the segments of a long video."""
    for uri, rows in groupby(videos.to_pylist(), key=lambda row: span_of(row["uri"])[0]):
        yield uri, list(rows)


class Measure(Decode):
    """Stage, CPU. Takes rows of `schema.CORPUS`, returns rows of `segments.DURATIONS`, same order."""

    def __call__(self, videos: pa.Table) -> pa.Table:
        """Return how long each video is."""
        return self.measure(videos)
