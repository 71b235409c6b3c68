"""A plain view of stored tokens for other programs: Parquet with lists of numbers, or safetensors or npz per video.

Every entry is checked as it is read. Files appear whole and are named after what is in them, so an export that was
interrupted goes on where it ended, and one that is repeated writes only what is new. `manifest.jsonl`, written last, says
what is in which file; files of an earlier state of the store that it does not name are left alone.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from pipeline.errors import ConfigError, StoreError
from pipeline.names import json_line
from pipeline.storage.filesystem import create_exclusive, list_files, open_root, write_whole
from pipeline.storage.parquet_io import to_parquet
from pipeline.store.entries import Entry
from pipeline.store.token_store import TokenStore

Format = Literal["parquet", "safetensors", "npz"]
MAX_STEM = 120
"""Characters of a video id in a file name; longer ones are told apart by their digest."""
EARLIEST = (1980, 1, 1, 0, 0, 0)
"""Time in a zip file, so that equal arrays give equal bytes."""

_VECTORS = pa.list_(pa.list_(pa.float32()))
PLAIN = pa.schema(
    [
        ("video_id", pa.string()),
        ("uri", pa.string()),
        ("features", _VECTORS),
        ("frame", pa.list_(pa.int16())),
        ("anchor", pa.list_(pa.int32())),
        ("kind", pa.list_(pa.uint8())),
        ("size", pa.list_(pa.float32())),
        ("position", _VECTORS),
        ("grid", pa.list_(pa.int32())),
        ("timestamps_s", pa.list_(pa.float32())),
        ("source_sha256", pa.string()),
        ("payload_sha256", pa.string()),
    ]
)
"""One row per video, as `shards.Entry` has it: features [S][D], the others [S], position [S][3]."""


def export(
    store: TokenStore, out: str, kind: Format = "parquet", videos_per_file: int = 256, options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write every committed entry below a folder. Returns counts, and the videos whose entry is damaged and left out.

    Raises ConfigError where nothing can be written.
    """
    if videos_per_file < 1:
        raise ConfigError(f"videos_per_file must be at least 1, got {videos_per_file}")
    fs, folder = open_root(out, options)
    rows = store.index.with_status("committed").select(["video_id", "uri", "payload_sha256"]).to_pylist()
    size = videos_per_file if kind == "parquet" else 1
    present, written = set(list_files(fs, folder, f".{kind}")), 0
    damaged: list[str] = []
    manifest: list[dict[str, Any]] = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        path = f"{folder}/{_name(part, kind)}"
        if path not in present:
            held, content = _content(store, part, kind, damaged)
            path = f"{folder}/{_name(held, kind)}"
            written += bool(held) and create_exclusive(fs, path, content)
            part = held
        manifest += [{**row, "file": path.rsplit("/", 1)[-1]} for row in part]
    lines = "".join(json_line(row) + "\n" for row in manifest)
    write_whole(fs, f"{folder}/manifest.jsonl", lines.encode())
    return {"format": kind, "videos": len(manifest), "files_written": written, "damaged": damaged}


def _name(rows: list[dict[str, Any]], kind: Format) -> str:
    """Return a file name that holds for this content alone and cannot leave its folder, whatever the ids."""
    digest = hashlib.sha256(json.dumps([[row["video_id"], row["payload_sha256"]] for row in rows]).encode()).hexdigest()[:16]
    if kind == "parquet":
        return f"tokens-{digest}.parquet"
    return f"{quote(rows[0]['video_id'], safe='').replace('.', '%2E')[:MAX_STEM] if rows else ''}-{digest}.{kind}"


def _content(
    store: TokenStore, rows: list[dict[str, Any]], kind: Format, damaged: list[str]
) -> tuple[list[dict[str, Any]], bytes]:
    """Return the rows that can be read, and a file of their entries; the others go to `damaged`."""
    held, entries = [], []
    for row in rows:
        try:
            entries.append(store.read(row["video_id"]))
            held.append(row)
        except StoreError:
            damaged.append(row["video_id"])
    if not held:
        return [], b""
    if kind == "parquet":
        return held, to_parquet(pa.concat_tables(_plain(row, entry) for row, entry in zip(held, entries, strict=True)))
    arrays = dict(_arrays(entries[0]))
    return held, _npz(arrays) if kind == "npz" else _safetensors(arrays, held[0] | _facts(entries[0]))


def _plain(row: Mapping[str, Any], entry: Entry) -> pa.Table:
    """Return one row of `PLAIN`."""
    vectors = {name: _nested(getattr(entry, name)) for name in ("features", "position")}
    lists = {name: getattr(entry, name) for name in ("frame", "anchor", "kind", "size")}
    values = {**lists, "grid": entry.grid, "timestamps_s": entry.timestamps_s}
    texts = {"video_id": row["video_id"], "uri": row["uri"]} | _facts(entry)
    columns = {name: pa.array([value], PLAIN.field(name).type) for name, value in (texts | values).items()}
    return pa.table({name: (columns | vectors)[name] for name in PLAIN.names}, schema=PLAIN)


def _nested(rows: Any) -> pa.ListArray:
    """Return one list of vectors from an array (S, D), without a Python object per number. Any: of any float type."""
    count, width = rows.shape
    inner = pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32) * width, pa.array(rows.astype(np.float32).ravel()))
    return pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), inner)


def _facts(entry: Entry) -> dict[str, str]:
    return {"source_sha256": entry.source_sha256, "payload_sha256": entry.payload_sha256}


def _arrays(entry: Entry) -> Iterator[tuple[str, Any]]:
    """Yield the arrays of an entry by name. Any: of any type."""
    for name in ("features", "frame", "anchor", "kind", "size", "position"):
        yield name, np.ascontiguousarray(getattr(entry, name))
    yield "grid", np.array(entry.grid, np.int32)
    yield "timestamps_s", np.array(entry.timestamps_s, np.float32)
    if entry.clip_space is not None:
        yield "clip_space", np.ascontiguousarray(entry.clip_space)
    for name, values in vars(entry.order).items() if entry.order is not None else ():
        yield f"order.{name}", np.ascontiguousarray(values)


def _safetensors(arrays: Mapping[str, Any], facts: Mapping[str, str]) -> bytes:
    from safetensors.numpy import save

    return bytes(save(dict(arrays), metadata={"entry": json.dumps(facts, sort_keys=True)}))  # several would come in any order


def _npz(arrays: Mapping[str, Any]) -> bytes:
    """Return an npz file; `numpy.savez` would write the time of day into it."""
    from zipfile import ZipFile, ZipInfo

    sink = BytesIO()
    with ZipFile(sink, "w") as archive:
        for name, values in arrays.items():
            inner = BytesIO()
            np.lib.format.write_array(inner, values, allow_pickle=False)
            archive.writestr(ZipInfo(f"{name}.npy", EARLIEST), inner.getvalue())
    return sink.getvalue()
