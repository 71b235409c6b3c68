"""What to encode: a directory, a glob or a manifest becomes a table of videos. Nothing is opened, only listed."""

import errno
import logging
import os
import stat
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem

from pipeline.corpus.fetch import source_hint
from pipeline.corpus.segments import HTTP, escaped, span_of
from pipeline.corpus.uris import Resolved, resolve
from pipeline.errors import ConfigError
from pipeline.names import bounded, clean_id, escape, local_path, local_uri, one_line, remote_uri, with_digest
from pipeline.schema import CORPUS
from pipeline.storage.filesystem import is_local, object_at, takes_on_error
from pipeline.storage.retry import patiently
from pipeline.tables.tabular import read_records
from pipeline.tables.values import texts

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
SHOWN_CHARACTERS = 80
WILDCARDS = "*?["
LAST_FORM = 3
"""Of an id, see `_ids`; all different."""


def read_corpus(spec: str, storage_options: Mapping[str, Any] | None = None) -> pa.Table:
    """Return the videos of a directory, a glob or a manifest (.parquet, .csv, .jsonl with video_id, uri), by id.

    In a directory or a glob the id is the path below the root without its suffix; files that differ only in the suffix
    keep it. What no column or line can hold is escaped, see `names`; so is a name that ends like a segment, see `segments`.
    The uri of a manifest may name a segment itself.
    Raises ConfigError for an empty or unreadable corpus, missing columns, and empty or doubled ids of a manifest.
    """
    if not spec.strip():
        raise ConfigError("expected a corpus, a directory, a glob or a manifest, got an empty text")
    read = _manifest if spec.lower().endswith(MANIFEST_SUFFIXES) and not _is_folder(spec) else _listing
    rows = read(spec, storage_options)
    if not rows:
        raise ConfigError(f"{spec}: expected at least one video, found none")
    _check_ids(spec, [row["video_id"] for row in rows])
    rows.sort(key=lambda row: str(row["video_id"]))
    return pa.Table.from_pylist(rows, schema=CORPUS)


def _is_folder(spec: str) -> bool:
    path = local_path(spec)
    return path is not None and path.is_dir()


def _listing(spec: str, storage_options: Mapping[str, Any] | None) -> list[dict[str, str]]:
    try:
        fs, path, pattern = _opened(spec, storage_options)
        found = patiently(spec, lambda: _found(fs, path, pattern))
    except FileNotFoundError as error:
        raise ConfigError(f"{spec}: no such directory, file or bucket") from error
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"{spec}: cannot be listed: {type(error).__name__}: {error}") from error
    files = {name: info for name, info in _through_links(found).items() if info["type"] == "file"}
    root = _root(path) if pattern else (path.rstrip("/") if path not in files else str(PurePosixPath(path).parent))
    ids = _ids(files, root)
    return [
        {"video_id": ids[name], "uri": escaped(_uri(fs, name)), "source_hint": source_hint(info)}
        for name, info in files.items()
    ]


def _opened(spec: str, storage_options: Mapping[str, Any] | None) -> tuple[Any, str, bool]:
    """Return file system and path of a corpus, and whether it is a pattern. Any: an fsspec file system.

    What is there under that very name is no pattern: folders are called `[2024] trip`.
    """
    path = local_path(spec)
    if path is not None and os.path.lexists(path):
        return LocalFileSystem(), str(path.absolute()), False
    fs, name = object_at(spec, storage_options)
    return fs, name, any(mark in name for mark in WILDCARDS) and (is_local(fs) or not patiently(spec, lambda: fs.exists(name)))


def _uri(fs: Any, name: str) -> str:
    """Return the URI of a listed file. Any: an fsspec file system."""
    return local_uri(name) if is_local(fs) else remote_uri(fs.unstrip_protocol(name))


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
            listing = _listed(fs, folder)
        except OSError as error:
            _unread(error)
            continue
        folders += [info["name"] for info in listing if info["type"] == "directory"]
        found |= {info["name"]: info for info in listing if info["type"] != "directory"}
    return found


def _listed(fs: Any, folder: str) -> list[dict[str, Any]]:
    """Return what a folder holds; of a file whose path is too long for the system, no more than its name. Any: as fsspec."""
    try:
        return list(fs.ls(folder, detail=True))
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return [_known(fs, name) for name in fs.ls(folder, detail=False)]


def _known(fs: Any, name: str) -> dict[str, Any]:
    try:
        return dict(fs.info(name))
    except OSError:
        return {"name": name, "type": "file"}  # the decode stage meets the same fault and gives it a class


def _unread(error: OSError) -> None:
    """Tell of a folder that may not be read, such as lost+found; raise for storage that fails: its videos are not gone."""
    if isinstance(error, PermissionError) or error.errno == errno.ENAMETOOLONG:
        logger.warning("a folder that may not be read is left out: %s", error)
    elif not isinstance(error, FileNotFoundError):
        raise error


def _without_hidden(found: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    """Leave out what begins with a dot, or lies in a folder that does: caches, and the files macOS puts beside others."""
    seen = {name: info for name, info in found.items() if "/." not in name[len(path.rstrip("/")) :]}
    if len(seen) < len(found):
        logger.info("%d hidden files are left out of %s", len(found) - len(seen), one_line(path))
    return seen


def _through_links(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return a listing with what local links lead to in their place; a link that leads nowhere is a file all the same.

    The decode stage gives that one its class. Links to directories are told of and not followed: they may go round. Any: as
    fsspec has it, which calls every link `other`, with the size of its target and the time of the link.
    """
    seen = {name: _target(name, info) if info.get("islink") else info for name, info in found.items()}
    folders = [name for name, info in seen.items() if info["type"] == "directory" and found[name].get("islink")]
    if folders:
        logger.warning("%d links to directories are not followed, such as %s", len(folders), one_line(folders[0]))
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
    fixed = pattern[: min(pattern.index(mark) for mark in WILDCARDS if mark in pattern)]
    return fixed.rsplit("/", 1)[0] if "/" in fixed else ""


def _ids(files: Iterable[str], root: str) -> dict[str, str]:
    """Return an id of its own for each file of a listing: its path below the root, without its suffix.

    Files whose ids would be the same take the next longer form: with the suffix, as storage spells the path (`a//b`), with a
    digest. Where one of them has such a form already, as `a.mp4` and `a.mkv` beside `a.mp4.avi`, the others take it.
    """
    form = {name: 0 if PurePosixPath(name).stem.strip() else 1 for name in files}  # no question file can name a blank id
    ids = {name: _id(name, root, form[name]) for name in form}
    while groups := _doubled(ids):
        for names in groups:
            least = min(form[name] for name in names)
            for name in (name for name in names if form[name] == least):
                form[name] += 1
                ids[name] = _id(name, root, form[name])
    return ids


def _id(name: str, root: str, form: int) -> str:
    path = PurePosixPath(name).relative_to(root) if root else PurePosixPath(name)
    text = (str(path.with_suffix("")), str(path), *[name.removeprefix(root).removeprefix("/")] * 2)[form]
    one = escaped(clean_id(text) if name.startswith(HTTP) else escape(text))  # HTTP's names are escaped already
    return with_digest(one, name) if form == LAST_FORM else bounded(one)


def _doubled(ids: Mapping[str, str]) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for name, one in ids.items():
        groups.setdefault(one, []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _manifest(spec: str, storage_options: Mapping[str, Any] | None) -> list[dict[str, str]]:
    records = read_records(spec, storage_options)
    columns = set().union(*records) if records else {"video_id", "uri"}
    if missing := {"video_id", "uri"} - columns:
        raise ConfigError(f"{spec}: expected columns video_id and uri, missing {sorted(missing)}, got {sorted(columns)}")
    ids, uris = (texts(records, column, spec, file_names=True) for column in ("video_id", "uri"))
    pairs = list(zip(ids, uris, strict=True))
    holes = [number for number, pair in enumerate(pairs, 1) if not all(text and text.strip() for text in pair)]
    if holes:
        raise ConfigError(f"{spec}: video_id or uri is empty in {len(holes)} rows, first in row {holes[0]}")
    _check_spans(spec, pairs)
    resolved = _resolved(spec, [str(uri) for _, uri in pairs], storage_options)
    clean = [clean_id(str(name)) for name, _ in pairs]
    if changed := [one for one, (name, _) in zip(clean, pairs, strict=True) if one != name]:
        logger.warning("%d video ids are escaped or too long, such as %s", len(changed), changed[0])
    return [{"video_id": one, "uri": found.uri, "source_hint": found.hint} for one, found in zip(clean, resolved, strict=True)]


def _resolved(spec: str, uris: Iterable[str], storage_options: Mapping[str, Any] | None) -> list[Resolved]:
    """Return where each object is, many asked at a time."""
    with ThreadPoolExecutor(32) as threads:
        return list(threads.map(lambda uri: resolve(uri, spec, storage_options), uris))


def _check_spans(spec: str, pairs: Iterable[tuple[Any, Any]]) -> None:
    """Raise ConfigError for an id that ends like another segment than its uri. Any: texts, see `values.texts`."""
    for name, uri in pairs:
        span = span_of(str(name))[1]
        if span is not None and span != span_of(str(uri))[1]:
            shown = one_line(f"the id {name} names a segment, expected a uri with the same ending, got {uri}")
            raise ConfigError(f"{spec}: {shown}")


def _check_ids(spec: str, ids: list[str]) -> None:
    doubled = sorted(name for name, count in Counter(ids).items() if count > 1)
    if doubled:
        more = f" and {len(doubled) - SHOWN} more" if len(doubled) > SHOWN else ""
        shown = ", ".join(name[:SHOWN_CHARACTERS] for name in doubled[:SHOWN])
        raise ConfigError(f"{spec}: {len(doubled)} video ids appear more than once: {shown}{more}")
