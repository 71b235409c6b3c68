"""Captions as files: one row per video or segment, and subtitles for videos that were cut into segments."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.corpus.segments import span_of
from pipeline.names import json_line
from pipeline.storage.filesystem import open_root, remove, write_whole
from pipeline.storage.parquet_io import from_parquet, to_parquet

CAPTIONS = pa.schema(
    [
        ("video_id", pa.string()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("caption", pa.string()),
        ("status", pa.string()),
        ("prompt", pa.string()),
        ("visual_tokens", pa.int32()),
        ("store_id", pa.string()),
        ("payload_sha256", pa.string()),
    ]
)
"""`start_s` and `end_s` are null where a video was not cut; `caption` is null unless `status` is ok."""

SUBTITLES = ("srt", "vtt")
"""Endings of subtitles, and folders they lie in."""
LONGEST_NAME = 200
"""Of a file of subtitles, without its ending."""


@dataclass(frozen=True, kw_only=True)
class Cue:
    """A line of subtitles."""

    start_s: float
    end_s: float
    text: str


def captions(answers: pa.Table) -> pa.Table:
    """Return rows of `CAPTIONS` from rows of `answer_store.ANSWERS`, in their order."""
    return pa.Table.from_pylist([_caption(row) for row in answers.to_pylist()], schema=CAPTIONS)


def _caption(row: Mapping[str, Any]) -> dict[str, Any]:
    name, span = span_of(row["video_id"])
    start, end = span or (None, None)
    same = {key: row[key] for key in ("status", "visual_tokens", "store_id", "payload_sha256")}
    return {"video_id": name, "start_s": start, "end_s": end, "caption": row["prediction"], "prompt": row["question"], **same}


def write(url: str, rows: pa.Table, storage_options: Mapping[str, Any] | None = None) -> list[str]:
    """Write captions.jsonl and captions.parquet, and SRT and WebVTT for each video with segments; returns their names."""
    fs, root = open_root(url, storage_options)
    lines = [json_line(row) + "\n" for row in rows.to_pylist()]
    files = {"captions.jsonl": "".join(lines).encode(), "captions.parquet": to_parquet(rows)}
    for name, cues in subtitles(rows.to_pylist()).items():
        files[f"srt/{file_name(name)}.srt"] = srt(cues).encode()
        files[f"vtt/{file_name(name)}.vtt"] = vtt(cues).encode()
    for name, content in files.items():
        if not _holds(fs, f"{root}/{name}", content):
            write_whole(fs, f"{root}/{name}", content)
    return list(files)


def written(url: str, storage_options: Mapping[str, Any] | None = None) -> pa.Table:
    """Return the rows of captions.parquet as it is now, none where it is not there or cannot be read."""
    fs, root = open_root(url, storage_options)
    try:
        return from_parquet(fs.cat_file(f"{root}/captions.parquet")).select(CAPTIONS.names)
    except Exception:  # whatever a driver or a damaged file raises, it is about to be written anew
        return CAPTIONS.empty_table()


def _holds(fs: Any, path: str, content: bytes) -> bool:
    """Tell whether a file is there and has this content: then nobody need copy or read it anew. Any: an fsspec file system."""
    try:
        return bool(fs.cat_file(path) == content)
    except Exception:  # whatever a driver raises, the file is written
        return False


def remove_subtitles(url: str, videos: Iterable[str], storage_options: Mapping[str, Any] | None = None) -> None:
    """Remove the SRT and WebVTT files of some videos, where there are any."""
    fs, root = open_root(url, storage_options)
    for name in sorted(map(file_name, videos)):
        for ending in SUBTITLES:
            remove(fs, f"{root}/{ending}/{name}.{ending}")


def subtitles(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Cue]]:
    """Return the cues of each video that was cut, by time; segments without a caption leave a gap."""
    found: dict[str, list[Cue]] = {}
    for row in rows:
        if row["start_s"] is not None:
            cues = found.setdefault(row["video_id"], [])
            if row["status"] == "ok" and row["caption"].strip():
                cues.append(Cue(start_s=row["start_s"], end_s=row["end_s"], text=row["caption"]))
    return {name: sorted(cues, key=lambda cue: cue.start_s) for name, cues in found.items()}


def srt(cues: Sequence[Cue]) -> str:
    """Return SubRip text."""
    blocks = [
        f"{number}\n{_clock(cue.start_s, ',')} --> {_clock(cue.end_s, ',')}\n{_plain(cue.text)}\n"
        for number, cue in enumerate(cues, 1)
    ]
    return "\n".join(blocks)


def vtt(cues: Sequence[Cue]) -> str:
    """Return WebVTT text; `&`, `<` and `>` are escaped, as its grammar asks."""
    blocks = ["WEBVTT\n"]
    for cue in cues:
        text = _plain(cue.text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        blocks.append(f"{_clock(cue.start_s, '.')} --> {_clock(cue.end_s, '.')}\n{text}\n")
    return "\n".join(blocks)


def _plain(text: str) -> str:
    """Return text as one line: a blank one would end the cue."""
    return " ".join(text.split()).replace("-->", "->")


def _clock(seconds: float, mark: str) -> str:
    """Return HH:MM:SS and milliseconds."""
    whole, thousandths = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{mark}{thousandths:03}"


def file_name(video_id: str) -> str:
    """Return a name that is one path component on any storage; different ids have different names.

    A long one ends in a digest: file systems take 255 bytes, and a character of an id may need twelve of them.
    """
    name = re.sub(r"[^A-Za-z0-9_-]", lambda found: "".join(f"%{byte:02X}" for byte in found.group().encode()), video_id)
    if len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(video_id.encode()).hexdigest()[:32]
    return f"{name[: LONGEST_NAME - len(digest) - 1]}~{digest}"
