"""Answers on storage: committed, resumed and merged by the protocol of the token store.

    <out>/specs/<fingerprint>.json              all that the answers depend on
    <out>/answers/<fingerprint>/<unit>.parquet  immutable, named by content, created only if absent
    <out>/answers.jsonl, <out>/answers.parquet  every question once, in the order of the question file

A question is done when an answer to the same text about the same stored tokens is committed: a video that was encoded
again is asked again. Missing videos, damaged entries and questions that ran out of memory are rows too, but are asked
again each time.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import fsspec
import pyarrow as pa

from pipeline.errors import ConfigError, StoreError
from pipeline.fingerprint import canonical_json, fingerprint
from pipeline.names import json_line
from pipeline.storage.filesystem import create_exclusive, list_files, read_many, renew, write_whole
from pipeline.storage.parquet_io import from_parquet, to_parquet
from pipeline.storage.preflight import check_can_create

logger = logging.getLogger(__name__)

QUESTIONS_ASKED = pa.schema(
    [
        *((name, pa.string()) for name in ("question_id", "video_id", "question", "store_id", "payload_sha256", "history")),
        ("turn", pa.int32()),
    ]
)
"""What the answer stage takes. `store_id` and `payload_sha256` are null when the store does not hold the video; `turn` and
`history` where a question is asked by itself, see `questions.datasets.with_history`."""

ANSWERS = pa.schema(
    [
        ("question_id", pa.string()),
        ("video_id", pa.string()),
        ("question", pa.string()),
        ("prediction", pa.string()),
        ("status", pa.string()),
        ("visual_tokens", pa.int32()),
        ("answer_tokens", pa.int32()),
        ("store_id", pa.string()),
        ("payload_sha256", pa.string()),
        ("turn", pa.int32()),
        ("history", pa.string()),
    ]
)
"""What it returns. `prediction` is null unless `status` is ok; `payload_sha256`: the tokens that were read."""

ADDED = frozenset({"turn", "history"})
"""Columns that the first units had not; a unit without them holds no turns."""

MANIFEST = pa.schema(
    [
        ("unit", pa.string()),
        ("status", pa.string()),
        ("questions", pa.int32()),
        ("ok", pa.int32()),
        ("statuses", pa.map_(pa.string(), pa.int32())),
    ]
)
"""What committing a unit returns. `statuses`: how many questions ended in which way."""

FINAL = frozenset({"ok", "empty_question", "reserved_token", "too_long"})
"""Statuses that asking again would not change."""

PENDING = "pending"
"""Status, in the merged files only, of a question that no unit has answered yet."""

Key = tuple[str, str, str | None, str | None]
"""Question id, question text, digest of the stored tokens, digest of the turns before: what an answer is an answer to."""


class AnswerStore:
    """The answers of one fingerprint under one root."""

    def __init__(self, url: str, fingerprint: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self.fs, self.root = fsspec.core.url_to_fs(url, **(storage_options or {}))
        self.fingerprint = fingerprint
        self.folder = f"{self.root.rstrip('/')}/answers/{fingerprint}"

    @classmethod
    def create(cls, url: str, spec: Mapping[str, Any], storage_options: Mapping[str, Any] | None = None) -> "AnswerStore":
        """Open the answers of a spec; write the spec beside them if nobody has. See `answer.answer_spec`."""
        store = cls(url, fingerprint(spec), storage_options)
        store.write_spec(spec)
        return store

    @classmethod
    def preview(cls, url: str, spec: Mapping[str, Any], storage_options: Mapping[str, Any] | None = None) -> "AnswerStore":
        """Open the answers of a spec without writing; there are none where the folder does not exist yet.

        Raises ConfigError where `create` could not write the spec. Call `write_spec` before the first commit.
        """
        store = cls(url, fingerprint(spec), storage_options)
        check_can_create(store.fs, store.spec_path)
        return store

    @property
    def spec_path(self) -> str:
        """Return the path of the spec."""
        return f"{self.root.rstrip('/')}/specs/{self.fingerprint}.json"

    def write_spec(self, spec: Mapping[str, Any]) -> None:
        """Write the spec of these answers unless it is stored already. Raises ConfigError where nothing can be written."""
        create_exclusive(self.fs, self.spec_path, canonical_json(spec).encode())

    def commit(self, answered: pa.Table) -> dict[str, Any]:
        """Write one unit, once. Returns a row of `MANIFEST`; `duplicate` when these very answers are there already."""
        content = to_parquet(answered)
        unit = hashlib.sha256(content).hexdigest()
        path = f"{self.folder}/{unit}.parquet"
        created = create_exclusive(self.fs, path, content)
        if not created:
            renew(self.fs, path, content)
        statuses = Counter(answered["status"].to_pylist())
        status = "committed" if created else "duplicate"
        counts = {"questions": answered.num_rows, "ok": statuses["ok"], "statuses": sorted(statuses.items())}
        return {"unit": unit, "status": status, **counts}

    def committed(self) -> pa.Table:
        """Return every committed row. Those of a unit that is not what its name says are as good as never given."""
        paths = list(list_files(self.fs, self.folder, ".parquet"))
        contents = read_many(self.fs, paths)
        tables = []
        for path in paths:
            try:
                tables.append(_checked(path, contents[path]))
            except StoreError as error:
                logger.warning("%s: its questions are asked again", error)
        return pa.concat_tables(tables) if tables else ANSWERS.empty_table()

    def pending(self, asked: pa.Table) -> pa.Table:
        """Return the rows of `asked` (columns of `QUESTIONS_ASKED`) that no final answer is committed for, in order.

        A conversation is pending as a whole: a turn needs what was said before it.
        """
        done = {_key(row) for row in self.committed().to_pylist() if row["status"] in FINAL}
        rows = asked.to_pylist()
        open_talks = {row["video_id"] for row in rows if row["turn"] is not None and _key(row) not in done}
        keep = [_key(row) not in done or (row["turn"] is not None and row["video_id"] in open_talks) for row in rows]
        return asked.filter(pa.array(keep, pa.bool_())).select(QUESTIONS_ASKED.names)

    def merged(self, asked: pa.Table) -> pa.Table:
        """Return one row of `ANSWERS` per row of `asked`, in its order."""
        return merge(asked, self.committed())

    def finish(self, asked: pa.Table) -> dict[str, int]:
        """Write answers.jsonl and answers.parquet, one row per question in the order of `asked`.

        Returns the number of questions by status. Where answers differ (two half-precision runs that overlapped), the
        same one is always taken: a final one before others, then the smallest by status and text.
        """
        merged = self.merged(asked)
        lines = [json_line(row) + "\n" for row in merged.to_pylist()]
        write_whole(self.fs, f"{self.root.rstrip('/')}/answers.jsonl", "".join(lines).encode())
        write_whole(self.fs, f"{self.root.rstrip('/')}/answers.parquet", to_parquet(merged))
        return dict(sorted(Counter(merged["status"].to_pylist()).items()))

    def statuses(self, asked: pa.Table) -> dict[str, int]:
        """Return the number of questions by status, as `finish` does, and write nothing."""
        return dict(sorted(Counter(self.merged(asked)["status"].to_pylist()).items()))


class CommitAnswers:
    """Stage. Takes the rows of one answered unit, commits them, returns one row of `MANIFEST`."""

    def __init__(self, url: str, fingerprint: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self.answers = AnswerStore(url, fingerprint, storage_options)

    def __call__(self, answered: pa.Table) -> pa.Table:
        """Return what was committed; an empty table commits nothing."""
        rows = [self.answers.commit(answered)] if answered.num_rows else []
        return pa.Table.from_pylist(rows, schema=MANIFEST)


def units(pending: pa.Table, videos_per_unit: int = 8) -> Iterator[pa.Table]:
    """Yield tables of a few videos with all their questions, sorted by video, so that each video is read once."""
    if videos_per_unit < 1:
        raise ConfigError(f"videos_per_unit must be at least 1, got {videos_per_unit}")
    ordered = pending.sort_by([("store_id", "ascending"), ("video_id", "ascending"), ("question_id", "ascending")])
    names = [row["store_id"] or row["video_id"] for row in ordered.select(["store_id", "video_id"]).to_pylist()]
    starts = [at for at, name in enumerate(names) if at == 0 or name != names[at - 1]]
    edges = [*starts[::videos_per_unit], len(names)]
    return (ordered.slice(start, end - start) for start, end in pairwise(edges))


def merge(asked: pa.Table, committed: pa.Table) -> pa.Table:
    """Return one row of `ANSWERS` per row of `asked`, in its order; a question without an answer is `pending`."""
    best: dict[Key, dict[str, Any]] = {}
    for row in sorted(committed.to_pylist(), key=_preference):
        best.setdefault(_key(row), row)
    rows = []
    for row in asked.select(QUESTIONS_ASKED.names).to_pylist():
        found = best.get(_key(row), {"status": "missing_video" if row["store_id"] is None else PENDING})
        rows.append({**row, **found, "video_id": row["video_id"], "store_id": row["store_id"]})
    return pa.Table.from_pylist(rows, schema=ANSWERS)


def _checked(path: str, content: bytes) -> pa.Table:
    name, digest = path.rsplit("/", 1)[-1].removesuffix(".parquet"), hashlib.sha256(content).hexdigest()
    if name != digest:
        raise StoreError(f"{path}: the content has SHA-256 {digest}; the unit was changed after it was committed")
    found = from_parquet(content)
    for column in (column for column in ANSWERS if column.name in ADDED and column.name not in found.column_names):
        found = found.append_column(column, pa.nulls(len(found), column.type))
    return found.select(ANSWERS.names).cast(ANSWERS)


def _key(row: Mapping[str, Any]) -> Key:
    return row["question_id"], row["question"], row["payload_sha256"], row["history"]


def _preference(row: Mapping[str, Any]) -> tuple[bool, str, str]:
    return row["status"] not in FINAL, row["status"], row["prediction"] or ""
