"""The token store: encode once, read for ever. Its layout and its promises are in docs/architecture.md.

    <root>/specs/<fingerprint>.json                 everything the tokens depend on
    <root>/tokens/<fingerprint>/<digest>.parquet    immutable shards, a row group per entry
    <root>/index/<fingerprint>/<digest>.parquet     what is committed where; failures with class and message

A shard is written first, its end read back, then the fragment that names it. Readers trust fragments only: a crash
leaves at worst a shard that nothing names.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import ConfigError, StoreError
from pipeline.fingerprint import fingerprint
from pipeline.schema import ENTRY, INDEX, MANIFEST
from pipeline.storage.filesystem import list_files, open_root
from pipeline.storage.preflight import check_can_create
from pipeline.store.entries import Entry, payload_digest
from pipeline.store.index import TRANSIENT, Index
from pipeline.store.shards import Place, ShardReader, write_entries
from pipeline.store.specs import fingerprints, matching_fingerprints, read_spec, reducer_name, spec_path, write_spec

MOVES = 20
"""How many times a reader follows an entry that compaction moves, and how often it reads an index that changes."""


class TokenStore:
    """The entries of one fingerprint under one root. Build it with `create`, `preview` or `open`."""

    def __init__(self, fs: Any, root: str, spec: Mapping[str, Any]) -> None:
        self.fs = fs
        self.root = root
        self.spec = dict(spec)
        self.fingerprint = fingerprint(spec)
        self.tokens = f"{root}/tokens/{self.fingerprint}"
        self.index = Index(fs, f"{root}/index/{self.fingerprint}")
        self.reader = ShardReader(fs)

    @classmethod
    def create(cls, url: str, spec: Mapping[str, Any], storage_options: Mapping[str, Any] | None = None) -> "TokenStore":
        """Open the entries of a spec, and write the spec if nobody has. Raises ConfigError where nothing can be written."""
        fs, root = open_root(url, storage_options)
        write_spec(fs, root, spec)
        return cls(fs, root, spec)

    @classmethod
    def preview(cls, url: str, spec: Mapping[str, Any], storage_options: Mapping[str, Any] | None = None) -> "TokenStore":
        """Open the entries of a spec without writing; the index is empty where the store does not exist yet.

        Raises ConfigError where `create` could not write the spec. Call `write_spec` before the first commit.
        """
        fs, root = open_root(url, storage_options)
        check_can_create(fs, spec_path(root, spec))
        return cls(fs, root, spec)

    def write_spec(self) -> None:
        """Write the spec unless it is stored already. Raises ConfigError where nothing can be written."""
        write_spec(self.fs, self.root, self.spec)

    @classmethod
    def open(
        cls, url: str, fingerprint: str | None = None, storage_options: Mapping[str, Any] | None = None,
        reducer: str | None = None,
    ) -> "TokenStore":  # fmt: skip
        """Open the entries of a fingerprint, given by its beginning, or of a reducer, or the only ones there are.

        Raises ConfigError if there is no store, no such fingerprint, or more than one to choose from.
        """
        fs, root = open_root(url, storage_options)
        matching = matching_fingerprints(fs, root, fingerprint, reducer)
        if len(matching) != 1:
            known = ", ".join(f"{name[:12]} ({reducer_name(fs, root, name)})" for name in fingerprints(fs, root))
            given = f"fingerprint {fingerprint!r}" if reducer is None else f"reducer {reducer!r}"
            is_given = fingerprint is not None or reducer is not None
            problem = f"{len(matching)} fingerprints match {given}" if is_given else "several fingerprints"
            raise ConfigError(f"{url}: {problem}; pass --fingerprint or --reducer for one of: {known}")
        return cls(fs, root, read_spec(fs, root, matching[0]))

    def refresh(self) -> None:
        """See what others committed since."""
        self.index.refresh()

    def ids(self) -> list[str]:
        """Return the committed videos, sorted."""
        names: list[str] = self.index.with_status("committed")["video_id"].to_pylist()
        return names

    def payloads(self) -> dict[str, str]:
        """Return the payload digest of each committed video."""
        rows = self.index.with_status("committed")
        return dict(zip(rows["video_id"].to_pylist(), rows["payload_sha256"].to_pylist(), strict=True))

    def failures(self) -> pa.Table:
        """Return video_id, uri, error_class and error of each failed video."""
        return self.index.with_status("failed").select(["video_id", "uri", "error_class", "error"])

    def missing(self, corpus: pa.Table, retry: Collection[str] = ()) -> pa.Table:
        """Return the rows of a corpus that are to be encoded, see `Index.missing`."""
        return self.index.missing(corpus, retry)

    def read(self, video_id: str) -> Entry:
        """Return one entry by one ranged read. Raises KeyError if it is not committed, StoreError if it is damaged.

        Compaction and gc may move the entry meanwhile, several times on a busy machine, so the index is read again as long as
        it changes. An entry that cannot be read while the index stays the same is damaged.
        """
        row = self._committed(video_id)
        for _ in range(MOVES):
            try:
                return self._entry(video_id, row)
            except StoreError:
                fresh = self._moved(video_id, row)
                if fresh is None:
                    raise
                row = fresh
        return self._entry(video_id, row)

    def _entry(self, video_id: str, row: Mapping[str, Any]) -> Entry:
        """Return the entry that a row of the index names. Raises StoreError."""
        entry = self.reader.read(self._place(row))
        stored_id = row["stored_id"] or video_id
        if entry.video_id != stored_id:
            raise StoreError(f"{row['shard']}: expected the entry of {stored_id}, got {entry.video_id}")
        return entry

    def _moved(self, video_id: str, row: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the new row of a video, None if the index does not change and names the same place.

        A listing is not of one moment: beside compaction it may lack the old fragments and the merged one, or show both. Such
        an index changes when it is read again. Raises KeyError if the video is no longer committed.
        """
        for _ in range(MOVES):
            before = frozenset(self.index.read)
            self.refresh()
            fresh = self.index.get(video_id)
            if fresh is not None and fresh["status"] == "committed" and fresh != row:
                return fresh
            if self.index.read == before:
                break
        self._committed(video_id)
        return None

    def read_row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the stored row of `schema.ENTRY` of a row of the index, checked."""
        found = self.reader.row(self._place(row))
        return {name: bytes(value) if isinstance(value, memoryview) else value for name, value in found.items()}

    def _committed(self, video_id: str) -> dict[str, Any]:
        row = self.index.get(video_id)
        if row is None or row["status"] != "committed":
            raise KeyError(video_id)
        return row

    def commit(self, encoded: pa.Table) -> pa.Table:
        """Write one unit, rows of `schema.ENCODED`; returns rows of `schema.MANIFEST` in their order.

        A video that another run has committed from the same source meanwhile is `duplicate` and not written again. A
        failure does not displace an entry unless the source is known to have changed.
        """
        self.refresh()
        rows = _rows(encoded)
        known = [self.index.get(row["video_id"]) for row in rows]
        fresh = [row for row, old in zip(rows, known, strict=True) if _is_new(row, old)]
        good = [at for at, row in enumerate(rows) if row["error_class"] is None and _is_new(row, known[at])]
        places = self._write(encoded, rows, sorted(good, key=lambda at: str(rows[at]["video_id"]))) if good else {}
        listed = [_index_row(row, self.index.get(row["video_id"]), places.get(row["video_id"])) for row in fresh]
        created = self.index.append(listed) if listed else False
        written = {row["video_id"] for row in fresh} if created else set()
        return pa.Table.from_pylist([_outcome(row, row["video_id"] in written) for row in rows], schema=MANIFEST)

    def stats(self) -> dict[str, Any]:
        """Return counts and sizes for a person; `cleared`: failures that the next encode takes up (`maintenance.clear`)."""
        rows = self.index.with_status("committed")
        failed = self.index.with_status("failed")
        classes = Counter(failed["error_class"].to_pylist())
        cleared = Counter(failed.filter(failed["source_hint"].is_null())["error_class"].to_pylist())
        shards = list_files(self.fs, self.tokens, ".parquet")
        tokens, payload = pc.sum(rows["tokens"]).as_py() or 0, pc.sum(rows["payload_bytes"]).as_py() or 0
        return {
            "fingerprint": self.fingerprint,
            "reducer": self.spec.get("reducer", {}).get("name"),
            "videos": rows.num_rows,
            "failed": dict(sorted((classes - cleared).items())),
            "cleared": dict(sorted(cleared.items())),
            "tokens": tokens,
            "tokens_per_video": round(tokens / rows.num_rows, 2) if rows.num_rows else None,
            "payload_bytes": payload,
            "bytes_per_video": round(payload / rows.num_rows) if rows.num_rows else None,
            "source_bytes": pc.sum(rows["source_bytes"]).as_py() or 0,
            "shards": len(shards),
            "stored_bytes": sum(shards.values()),
            "fragments": len(self.index.read),
        }

    def _place(self, row: Mapping[str, Any]) -> Place:
        return Place(
            shard=f"{self.tokens}/{row['shard']}.parquet",
            row_group=row["row_group"],
            offset=row["offset"],
            length=row["length"],
            payload_sha256=row["payload_sha256"],
        )

    def _write(self, encoded: pa.Table, rows: list[dict[str, Any]], good: list[int]) -> dict[Any, dict[str, Any]]:
        """Write some rows as a shard and return where each entry lies. Payloads stay in Arrow."""
        digests = [payload_digest(rows[at]) for at in good]
        kept = encoded if good == list(range(encoded.num_rows)) else encoded.take(pa.array(good))
        entries = kept.append_column("payload_sha256", pa.array(digests, pa.string())).select(ENTRY.names).cast(ENTRY)
        places = write_entries(self.fs, self.tokens, entries)
        return {
            rows[at]["video_id"]: {**place, "payload_sha256": digest}
            for at, digest, place in zip(good, digests, places, strict=True)
        }


class Commit:
    """Stage. Takes rows of `schema.ENCODED`, commits them as one unit, returns rows of `schema.MANIFEST`."""

    def __init__(self, url: str, spec: Mapping[str, Any], storage_options: Mapping[str, Any] | None = None) -> None:
        self.store = TokenStore.create(url, spec, storage_options)

    def __call__(self, encoded: pa.Table) -> pa.Table:
        """Return what became of each video."""
        return self.store.commit(encoded)


def _rows(encoded: pa.Table) -> list[dict[str, Any]]:
    """Return rows of `schema.ENCODED`, the features as views: they are most of the bytes. Any: of each column's type."""
    views = [memoryview(value.as_buffer()) if value.is_valid else None for value in encoded["features"]]
    rows = encoded.drop_columns("features").to_pylist()
    return [row | {"features": view} for row, view in zip(rows, views, strict=True)]


def _is_new(row: Mapping[str, Any], known: Mapping[str, Any] | None) -> bool:
    if known is None:
        return True
    same_source = row["source_sha256"] is not None and row["source_sha256"] == known["source_sha256"]
    if row["error_class"] is None:
        return not (known["status"] == "committed" and same_source and known["source_hint"] == row["source_hint"])
    if known["status"] == "committed":
        return not same_source and (row["source_sha256"] is not None or _was_refused_anew(row, known))
    return any(row[name] != known[name] for name in ("error_class", "source_hint", "uri"))


def _was_refused_anew(row: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    """Tell whether a video failed unhashed for what lies there now, its first bytes or size, and not for being out of reach."""
    return row["error_class"] not in TRANSIENT and row["source_hint"] not in ("{}", known["source_hint"])


def _index_row(row: Mapping[str, Any], known: Mapping[str, Any] | None, place: Mapping[str, Any] | None) -> dict[str, Any]:
    listed = {name: row.get(name) for name in INDEX.names} | {"generation": 1 + (known["generation"] if known else 0)}
    if place is None:
        return {**listed, "status": "failed"}
    return {**listed, **place, "status": "committed", "tokens": row["shape"][0], "payload_bytes": _payload_bytes(row)}


def _payload_bytes(row: Mapping[str, Any]) -> int:
    """Return the bytes of the features, scales of int8 rows among them."""
    return len(row["features"]) + len(row.get("scale") or b"")


def _outcome(row: Mapping[str, Any], written: bool) -> dict[str, Any]:
    if row["error_class"] is not None:
        return {"status": "failed", **{name: row[name] for name in ("video_id", "error_class", "error")}}
    return {
        "video_id": row["video_id"],
        "status": "committed" if written else "duplicate",
        "tokens": row["shape"][0],
        "bytes": _payload_bytes(row),
        "substituted_frames": row["substituted_frames"],
        "displaced_s": row["displaced_s"],
    }
