"""What a caption run saw of its corpus, kept beside the captions: their files say what is true, whoever writes them last.

    <out>/views/<digest>.parquet    a row per video or segment; in its metadata whose answers these are, and what it replaces

A view replaces those that its run had seen before it listed the corpus. Views of runs that overlapped did not know each other:
they stand side by side, and the files hold the videos of all of them until the next run, which has seen them, replaces them.
So a video goes from the files when a run that began after all that is known finds it gone, and never by the chance of who
wrote last. Where several views have a video, its caption is that of the run which began last, by the clock of its machine,
unless only another has one of what the store holds now.
"""

import hashlib
import json
import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.answer.answer_store import QUESTIONS_ASKED, AnswerStore
from pipeline.answer.captions import CAPTIONS, captions, remove_subtitles, write, written
from pipeline.corpus.segments import span_of
from pipeline.storage.filesystem import create_exclusive, list_files, open_root, read_folder, remove
from pipeline.storage.parquet_io import from_parquet, to_parquet

logger = logging.getLogger(__name__)
METADATA = b"framefold"


@dataclass(frozen=True, kw_only=True)
class View:
    """What one run asked."""

    asked: pa.Table
    """Rows of `answer_store.QUESTIONS_ASKED`, one per video or segment."""
    answers: str
    """Fingerprint of the answers to them."""
    replaces: frozenset[str] = frozenset()
    """Names of the views that were there before the corpus was listed."""
    began_s: float = 0.0
    """When the run began, in seconds since 1970; 0 where an older version did not say."""
    name: str = field(default_factory=lambda: uuid.uuid4().hex)

    def says_the_same_as(self, other: "View") -> bool:
        """Tell whether both are about the same videos under the same settings."""
        return self.answers == other.answers and bool(self.asked.equals(other.asked))


class Views:
    """The views beside the captions of one folder."""

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self.url = url
        self.options = storage_options
        self.fs, root = open_root(url, storage_options)
        self.folder = f"{root}/views"

    def names(self) -> frozenset[str]:
        """Return the names of all views. A run asks before it lists its corpus."""
        return frozenset(_name(path) for path in list_files(self.fs, self.folder, ".parquet"))

    def read(self) -> dict[str, View]:
        """Return all views by name. One that rotted says nothing; the next run replaces it."""
        found = read_folder(self.fs, self.folder, ".parquet")
        views = {_name(path): _view(_name(path), content) for path, content in found.items()}
        for name in (name for name, view in views.items() if view is None):
            logger.warning("%s/%s.parquet was changed after it was written: it is left out", self.folder, name)
        return {name: view for name, view in views.items() if view is not None}

    def commit(self, own: View) -> None:
        """Write a view, unless the only one that counts says the same already."""
        if [view.says_the_same_as(own) for view in heads(self.read()).values()] == [True]:
            return
        told = {"answers": own.answers, "replaces": sorted(own.replaces), "began_s": own.began_s, "nonce": own.name}
        content = to_parquet(own.asked.replace_schema_metadata({METADATA: json.dumps(told).encode()}))
        create_exclusive(self.fs, f"{self.folder}/{hashlib.sha256(content).hexdigest()}.parquet", content)

    def publish(self, own: View, payloads: Mapping[str, str], *, complete: bool) -> pa.Table:
        """Write the files of captions; returns their rows, of `captions.CAPTIONS`.

        Written again if another run committed a view meanwhile, so that the last writer has seen all of them. Subtitles of
        videos that are gone are removed, where a view or the captions so far tell of them; other files are not touched.

        Args:
            own: what this run saw.
            payloads: payload digest of each entry that the token store holds now.
            complete: False for a run that was stopped: it adds what it has, and takes nothing away.
        """
        if complete:
            self.commit(own)
        while True:
            seen = self.names()
            found = self.read()
            current = [*([] if complete else [own]), *heads(found).values()]
            rows = united([(view, self._rows(view)) for view in current], payloads)
            old = seen & _replaced(found)
            gone = {video for name in old & set(found) for video in _cut_videos(found[name].asked)}
            gone |= _cut_videos(written(self.url, self.options))  # of a run that was stopped, or whose view rotted
            remove_subtitles(self.url, gone - _cut_videos(rows), self.options)
            write(self.url, rows, self.options)
            if self.names() <= seen:
                break
        for name in old:
            remove(self.fs, f"{self.folder}/{name}.parquet")
        return rows

    def _rows(self, view: View) -> pa.Table:
        return captions(AnswerStore(self.url, view.answers, self.options).merged(view.asked))


def heads(views: Mapping[str, View]) -> dict[str, View]:
    """Return the views that no other replaces, by name."""
    return {name: views[name] for name in sorted(set(views) - _replaced(views))}


def united(views: Sequence[tuple[View, pa.Table]], payloads: Mapping[str, str]) -> pa.Table:
    """Return the captions of all videos of some views, in the order of their ids.

    All rows of a video come from one view: the one whose rows are most about the entries that the store holds now, then the
    one with fewest segments without a caption, then that of the run which began last, then the first.

    Args:
        views: each with its rows of `captions.CAPTIONS`.
        payloads: payload digest of each entry of the store.
    """
    if len(views) == 1:
        return views[0][1]
    best: dict[str, tuple[tuple[int, int, float], list[dict[str, Any]]]] = {}
    for view, table in views:
        for video, rows in _by_video(table).items():
            stale = sum(payloads.get(row["store_id"] or "") != row["payload_sha256"] for row in rows)
            rank = stale, sum(row["status"] != "ok" for row in rows), -view.began_s
            if video not in best or rank < best[video][0]:
                best[video] = rank, rows
    return pa.Table.from_pylist([row for video in sorted(best) for row in best[video][1]], schema=CAPTIONS)


def _by_video(table: pa.Table) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        found.setdefault(row["video_id"], []).append(row)
    return found


def _cut_videos(table: pa.Table) -> set[str]:
    """Return the videos of which a table, of questions or captions, has segments."""
    if "start_s" in table.column_names:
        return {row["video_id"] for row in table.select(["video_id", "start_s"]).to_pylist() if row["start_s"] is not None}
    return {video for video, span in map(span_of, table["video_id"].to_pylist()) if span is not None}


def _replaced(views: Mapping[str, View]) -> frozenset[str]:
    return frozenset(name for view in views.values() for name in view.replaces)


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1].removesuffix(".parquet")


def _view(name: str, content: bytes) -> View | None:
    """Return the view in a file, None where the content is not what the name says."""
    if hashlib.sha256(content).hexdigest() != name:
        return None
    table = from_parquet(content)
    told = json.loads(table.schema.metadata[METADATA])
    asked = table.replace_schema_metadata(None).select(QUESTIONS_ASKED.names)
    replaces, began_s = frozenset(told["replaces"]), float(told.get("began_s", 0.0))
    return View(asked=asked, answers=told["answers"], replaces=replaces, began_s=began_s, name=told["nonce"])
