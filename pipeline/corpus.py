"""What to encode: a directory, a glob or a manifest becomes a table of videos. Nothing is opened, only listed."""

import json
import logging
import stat
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import pyarrow as pa

from pipeline.errors import ConfigError
from pipeline.filesystem import takes_on_error
from pipeline.patience import patiently
from pipeline.records import read_records
from pipeline.schema import CORPUS
from pipeline.segments import escaped, file_of, span_of
from pipeline.sources import check_protocol, local_path, source_hint
from pipeline.values import texts

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = frozenset(
    f".{name}" for name in (
        "mp4", "m4v", "mov", "mkv", "webm", "avi", "flv", "wmv", "asf", "mpg", "mpeg", "ts", "m2ts", "mts", "ogv", "3gp", "gif",
        "ivf", "y4m", "h264", "hevc",
    )
)  # fmt: skip
"""What counts as a video in a directory; a glob takes whatever it matches."""
MANIFEST_SUFFIXES = (".parquet", ".csv", ".jsonl")
SHOWN = 5
MAX_ID_BYTES = 1024


def read_corpus(spec: str, storage_options: Mapping[str, Any] | None = None) -> pa.Table:
    """Return the videos of a directory, a glob or a manifest (.parquet, .csv, .jsonl with video_id, uri), by id.

    In a directory or a glob the id is the path below the root without its suffix; files that differ only in the suffix
    keep it. A name that ends like a segment is escaped, see `segments`; the uri of a manifest may name a segment itself.
    Raises ConfigError for an empty or unreadable corpus, missing columns, and empty, unusable or doubled ids.
    """
    if not spec.strip():
        raise ConfigError("expected a corpus, a directory, a glob or a manifest, got an empty text")
    read = _manifest if spec.lower().endswith(MANIFEST_SUFFIXES) else _listing
    rows = read(spec, storage_options)
    if not rows:
        raise ConfigError(f"{spec}: expected at least one video, found none")
    _check_ids(spec, [row["video_id"] for row in rows])
    rows.sort(key=lambda row: str(row["video_id"]))
    return pa.Table.from_pylist(rows, schema=CORPUS)


def _listing(spec: str, storage_options: Mapping[str, Any] | None) -> list[dict[str, str]]:
    try:
        fs, path = fsspec.core.url_to_fs(spec, **(storage_options or {}))
        pattern = any(mark in path for mark in "*?[")
        found = patiently(spec, lambda: _found(fs, path, pattern))
    except FileNotFoundError as error:
        raise ConfigError(f"{spec}: no such directory, file or bucket") from error
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"{spec}: cannot be listed: {type(error).__name__}: {error}") from error
    files = {name: info for name, info in _through_links(found).items() if info["type"] == "file"}
    root = _root(path) if pattern else (path.rstrip("/") if path not in files else str(PurePosixPath(path).parent))
    ids = _ids({name: str(PurePosixPath(name).relative_to(root)) if root else name for name in files})
    return [
        {"video_id": escaped(ids[name]), "uri": escaped(fs.unstrip_protocol(name)), "source_hint": source_hint(info)}
        for name, info in files.items()
    ]


def _found(fs: Any, path: str, pattern: bool) -> Mapping[str, Any]:
    """Return what a pattern matches or a directory holds, as storage tells it now. Any: an fsspec file system."""
    fs.invalidate_cache()
    return fs.glob(path, detail=True) if pattern else _files_below(fs, path)


def _files_below(fs: Any, path: str) -> Mapping[str, Any]:
    """Return the videos below a directory, or the one file. Any: an fsspec file system."""
    found: Mapping[str, Any] = _walked(fs, path) if takes_on_error(fs) else fs.find(path, detail=True)
    if not found and not fs.exists(path):
        raise FileNotFoundError(path)
    if set(found) == {path}:
        return found
    found = _without_hidden(found, path)
    return {
        name: info
        for name, info in found.items()
        if PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES or (info.get("islink") and Path(name).is_dir())
    }


def _walked(fs: Any, path: str) -> dict[str, Any]:
    """Return the files below a directory; fsspec's own walk finds nothing in a folder that fails. Any: as fsspec has it."""
    found: dict[str, Any] = {}
    folders = [path]
    for folder in folders:
        try:
            listing = fs.ls(folder, detail=True)
        except OSError as error:
            _unread(error)
            continue
        folders += [info["name"] for info in listing if info["type"] == "directory"]
        found |= {info["name"]: info for info in listing if info["type"] != "directory"}
    return found


def _unread(error: OSError) -> None:
    """Tell of a folder that may not be read, such as lost+found; raise for storage that fails: its videos are not gone."""
    if isinstance(error, PermissionError):
        logger.warning("a folder that may not be read is left out: %s", error)
    elif not isinstance(error, FileNotFoundError):
        raise error


def _without_hidden(found: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    """Leave out what begins with a dot, or lies in a folder that does: caches, and the files macOS puts beside others."""
    seen = {name: info for name, info in found.items() if "/." not in name[len(path.rstrip("/")) :]}
    if len(seen) < len(found):
        logger.info("%d hidden files are left out of %s", len(found) - len(seen), path)
    return seen


def _through_links(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return a listing with what local links lead to in their place; a link that leads nowhere is a file all the same.

    The decode stage gives that one its class. Links to directories are told of and not followed: they may go round. Any: as
    fsspec has it, which calls every link `other`, with the size of its target and the time of the link.
    """
    seen = {name: _target(name, info) if info.get("islink") else info for name, info in found.items()}
    folders = [name for name, info in seen.items() if info["type"] == "directory" and found[name].get("islink")]
    if folders:
        logger.warning("%d links to directories are not followed, such as %s", len(folders), folders[0])
    return seen


def _target(name: str, info: Mapping[str, Any]) -> dict[str, Any]:
    try:
        known = Path(name).stat()
    except OSError:
        return {**info, "type": "file"}
    kind = "file" if stat.S_ISREG(known.st_mode) else "directory" if stat.S_ISDIR(known.st_mode) else "other"
    return {**info, "type": kind, "size": known.st_size, "mtime": known.st_mtime}


def _root(pattern: str) -> str:
    """Return the folder of a glob in front of its first wildcard."""
    fixed = pattern[: min(pattern.index(mark) for mark in "*?[" if mark in pattern)]
    return fixed.rsplit("/", 1)[0] if "/" in fixed else ""


def _ids(relative: Mapping[str, str]) -> dict[str, str]:
    stems = {name: str(PurePosixPath(path).with_suffix("")) for name, path in relative.items()}
    shared = Counter(stems.values())
    return {name: stem if shared[stem] == 1 else relative[name] for name, stem in stems.items()}


def _manifest(spec: str, storage_options: Mapping[str, Any] | None) -> list[dict[str, str]]:
    records = read_records(spec, storage_options)
    columns = set().union(*records) if records else {"video_id", "uri"}
    if missing := {"video_id", "uri"} - columns:
        raise ConfigError(f"{spec}: expected columns video_id and uri, missing {sorted(missing)}, got {sorted(columns)}")
    pairs = list(zip(texts(records, "video_id", spec), texts(records, "uri", spec), strict=True))
    holes = [number for number, pair in enumerate(pairs, 1) if not all(text and text.strip() for text in pair)]
    if holes:
        raise ConfigError(f"{spec}: video_id or uri is empty in {len(holes)} rows, first in row {holes[0]}")
    _check_spans(spec, pairs)
    hints = _hints([file_of(str(uri)) for _, uri in pairs], storage_options)
    return [{"video_id": str(i), "uri": str(u), "source_hint": h} for (i, u), h in zip(pairs, hints, strict=True)]


def _hints(uris: Iterable[str], storage_options: Mapping[str, Any] | None) -> list[str]:
    """Return what storage says about each object, many asked at a time; `{}` where it says nothing."""
    with ThreadPoolExecutor(32) as threads:
        return list(threads.map(lambda uri: _hint(uri, storage_options), uris))


def _hint(uri: str, storage_options: Mapping[str, Any] | None) -> str:
    try:
        path = local_path(uri)
        if path is not None:
            known = path.stat()
            info = {"size": known.st_size, "mtime": known.st_mtime}
            return source_hint(info) if stat.S_ISREG(known.st_mode) else "{}"
        check_protocol(uri)
        fs, name = fsspec.core.url_to_fs(uri, **(storage_options or {}))
        return source_hint(patiently(uri, lambda: fs.info(name)))
    except Exception:  # OSError, ValueError, ImportError, VideoError, and what aiohttp and botocore raise
        return "{}"  # the decode stage meets the same fault and gives it a class


def _check_spans(spec: str, pairs: Iterable[tuple[Any, Any]]) -> None:
    """Raise ConfigError for an id that ends like another segment than its uri. Any: texts, see `values.texts`."""
    for name, uri in pairs:
        span = span_of(str(name))[1]
        if span is not None and span != span_of(str(uri))[1]:
            raise ConfigError(f"{spec}: the id {name} names a segment, expected a uri with the same ending, got {uri}")


def _check_ids(spec: str, ids: list[str]) -> None:
    doubled = sorted(name for name, count in Counter(ids).items() if count > 1)
    if doubled:
        more = f" and {len(doubled) - SHOWN} more" if len(doubled) > SHOWN else ""
        raise ConfigError(f"{spec}: {len(doubled)} video ids appear more than once: {', '.join(doubled[:SHOWN])}{more}")
    for name in ids:
        if not name.isprintable() or len(name.encode(errors="replace")) > MAX_ID_BYTES:
            shown = json.dumps(name[:40])
            raise ConfigError(f"{spec}: expected printable video ids of at most {MAX_ID_BYTES} bytes, got {shown}")
