"""What the stores ask of storage: open a root, list, read a range, and create a file only if nobody has.

Creation is a hard link on local disk, and a looked-up `If-None-Match` on object storage (`object_storage`). Names are made of
what a file holds, so that a commit is safe where storage ignores the condition. Storage that falters is asked again
(`retry`); what is still broken then is a StoreError.
"""

import errno
import hashlib
import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
from fsspec.spec import AbstractFileSystem

from pipeline.errors import ConfigError, StorageError, StoreError
from pipeline.extras import missing_extra
from pipeline.storage import object_storage
from pipeline.storage.retry import patiently

UNUSABLE = (errno.EROFS, errno.ENAMETOOLONG)
"""A place where nothing can be written: another is to be named."""

DIGEST = re.compile("[0-9a-f]{64}")

LOOKS = 5
"""How often a folder is listed anew because a file of it vanished before it was read."""


def open_root(url: str, storage_options: Mapping[str, Any] | None = None) -> tuple[Any, str]:
    """Return file system and path of a root, without a slash at the end. Raises ConfigError for an unusable URL.

    Any: fsspec file systems are untyped.
    """
    if not url.strip():
        raise ConfigError("expected a folder or a URL, got an empty text")
    try:
        fs, path = fsspec.core.url_to_fs(url, **(storage_options or {}))
    except (ValueError, ImportError, OSError, TypeError) as error:
        if (missing := missing_extra(error)) is not None:
            raise missing from error
        raise ConfigError(f"{url}: not a usable URL: {type(error).__name__}: {error}") from error
    if is_local(fs):
        path = str(Path(path).absolute())
    return fs, path.rstrip("/")


def object_at(url: str, storage_options: Mapping[str, Any] | None = None) -> tuple[Any, str]:
    """Return file system and path of an object, whatever is in its name. Any: fsspec file systems are untyped.

    `::` chains protocols only where a protocol or a URL follows each time, as in `zip://a.mp4::s3://bucket/a.zip`; elsewhere it
    is part of a name. Raises ValueError, ImportError and OSError, as fsspec does.
    """
    first, *others = url.split("::")
    is_chain = all("://" in one or one in fsspec.available_protocols() for one in others)
    fs, path = fsspec.core.url_to_fs(url if is_chain else first, **(storage_options or {}))
    return fs, path if is_chain else fs._strip_protocol(url)


def is_local(fs: Any) -> bool:
    """Tell whether a file system is the local disk."""
    return "file" in ([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol)


def create_exclusive(fs: Any, path: str, content: bytes | memoryview) -> bool:
    """Write a file only if it is not there. Returns whether this call created it, as far as can be known.

    The name must be made of the content, or of all that the content depends on: storage may answer as if it had created the
    file and keep another writer's, or put ours in its place. docs/architecture.md lists the uses.

    Raises:
        ConfigError: no permission, no such bucket, a name that is too long, or nothing can be written there at all.
        StoreError: storage failed.
    """
    try:
        if is_local(fs):
            return _link(Path(path), content)
        return object_storage.create(fs, path, bytes(content))
    except PermissionError as error:
        raise ConfigError(f"{path}: no permission to write: {error}") from error
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such bucket or folder: {error}") from error
    except (NotADirectoryError, FileExistsError) as error:
        raise ConfigError(f"{path}: a file stands where a folder is needed") from error
    except OSError as error:
        kind = ConfigError if error.errno in UNUSABLE else StoreError
        raise kind(f"{path}: cannot be written: {type(error).__name__}: {error}") from error


def _link(path: Path, content: bytes | memoryview) -> bool:
    """Write beside, make durable, link into place: a reader sees all of the file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = _beside(path)
    try:
        _write_durably(beside, content)
        try:
            os.link(beside, path)
        except FileExistsError:
            return False
    finally:
        beside.unlink(missing_ok=True)
    _sync_folder(path.parent)
    return True


def _beside(path: Path) -> Path:
    """Return a name in the same folder that nobody reads."""
    return path.with_name(f".{path.name[:40]}.{uuid.uuid4().hex}.tmp")


def _write_durably(path: Path, content: bytes | memoryview) -> None:
    with path.open("xb", buffering=0) as file:
        left = memoryview(content)
        while left:
            left = left[file.write(left) :]
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def renew(fs: Any, path: str, content: bytes | memoryview) -> None:
    """Make a file that is there already young, and whole where it rotted: what its content names cannot be another.

    Without this an old shard that a crash left behind could be collected while the same unit is committed again.
    Raises StoreError where storage failed.
    """
    try:
        if not is_local(fs):
            object_storage.replace(fs, path, bytes(content))
            return
        file = Path(path)
        if file.read_bytes() != content:
            _replace(file, content)
        os.utime(file)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written: {type(error).__name__}: {error}") from error


def write_whole(fs: Any, path: str, content: bytes) -> None:
    """Write a file, in the place of one that is there; a reader sees all of the old or all of the new. Raises ConfigError."""
    try:
        if is_local(fs):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            _replace(Path(path), content)
        else:
            object_storage.replace(fs, path, content)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {type(error).__name__}: {error}") from error


def _replace(path: Path, content: bytes | memoryview) -> None:
    """Put a whole file in the place of another; what is there before or after a crash is one of the two."""
    beside = _beside(path)
    try:
        _write_durably(beside, content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    _sync_folder(path.parent)


def list_files(fs: Any, folder: str, suffix: str) -> dict[str, int]:
    """Return path and size of the files in a folder, sorted; none if there is no folder."""
    try:
        found = patiently(folder, lambda: _find(fs, folder))
    except FileNotFoundError:
        return {}
    except PermissionError as error:
        raise ConfigError(f"{folder}: no permission to read: {error}") from error
    except OSError as error:
        raise StoreError(f"{folder}: cannot be listed: {type(error).__name__}: {error}") from error
    return {path: int(found[path]["size"]) for path in sorted(found) if path.endswith(suffix)}


def _find(fs: Any, folder: str) -> dict[str, Any]:
    """Return what fsspec tells of the files in a folder. Raises OSError, where its own walk would find an empty folder."""
    fs.invalidate_cache(folder)
    found: dict[str, Any] = fs.find(folder, maxdepth=1, detail=True, **({"on_error": "raise"} if takes_on_error(fs) else {}))
    return found


def takes_on_error(fs: Any) -> bool:
    """Tell whether `find` takes `on_error`: local disk and others do, which fsspec walks itself. Any: an fsspec file system."""
    return type(fs).find is AbstractFileSystem.find


def size_of(fs: Any, path: str) -> int:
    """Return the size of a file in bytes. Raises StoreError."""
    try:
        return patiently(path, lambda: int(fs.size(path)))
    except OSError as error:
        raise StoreError(f"{path}: cannot be found: {type(error).__name__}: {error}") from error


def read_bytes(fs: Any, path: str, start: int | None = None, end: int | None = None) -> bytes:
    """Return a file, or a range of it. Raises StoreError where it cannot be read in full, StorageError if storage fails."""
    try:
        return patiently(path, lambda: _read(fs, path, start, end))
    except (OSError, ValueError, OverflowError, MemoryError) as error:  # the last two for ranges that no file has
        at_fault = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
        raise (StorageError if at_fault else StoreError)(f"{path}: cannot be read: {type(error).__name__}: {error}") from error


def _read(fs: Any, path: str, start: int | None, end: int | None) -> bytes:
    content: bytes = fs.cat_file(path, start=start, end=end)
    if start is None and end is None and not is_local(fs):
        if object_storage.is_error_document(content):
            raise OSError("storage sent an error in the place of the file")
        if not _fits_its_name(path, content):  # what rotted comes again as it is, a wrong answer does not
            content = fs.cat_file(path)
    if start is not None and end is not None and len(content) != end - start:
        raise OSError(f"expected {end - start} bytes at {start}, got {len(content)}")
    return content


def _fits_its_name(path: str, content: bytes) -> bool:
    """Tell whether a file whose name is a SHA-256 has that content; True for other names."""
    name = path.rsplit("/", 1)[-1].split(".", 1)[0]
    return not DIGEST.fullmatch(name) or hashlib.sha256(content).hexdigest() == name


def read_folder(fs: Any, folder: str, suffix: str) -> dict[str, bytes]:
    """Return path and content of the files in a folder; lists again where one vanished, as another holds its content by then.

    Raises StoreError.
    """
    for _ in range(LOOKS):
        paths = list(list_files(fs, folder, suffix))
        try:
            return read_many(fs, paths)
        except StoreError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
    raise StoreError(f"{folder}: files keep vanishing while they are read")


def remove(fs: Any, path: str) -> None:
    """Remove a file; one that another process removed meanwhile is no fault. Raises StoreError."""
    try:
        patiently(path, lambda: fs.rm_file(path))
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(f"{path}: cannot be removed: {type(error).__name__}: {error}") from error


def read_many(fs: Any, paths: list[str]) -> dict[str, bytes]:
    """Return several files, fetched at once where storage can. Raises StoreError if one cannot be read."""
    found: dict[str, bytes] = {}

    def read_rest() -> None:
        left = [path for path in paths if path not in found]
        got = fs.cat_ranges(left, None, None, on_error="return")  # `cat` takes a path with brackets or stars for a pattern
        found.update({path: content for path, content in zip(left, got, strict=True) if isinstance(content, bytes)})
        for error in got:
            if isinstance(error, Exception):
                raise error
        if not is_local(fs) and (wrong := [path for path in left if object_storage.is_error_document(found[path])]):
            for path in wrong:
                del found[path]
            raise OSError(f"storage sent an error in the place of {len(wrong)} files, first {wrong[0]}")

    try:
        if paths:
            patiently(f"{len(paths)} files", read_rest)
            doubtful = [] if is_local(fs) else [path for path in paths if not _fits_its_name(path, found[path])]
            for path in doubtful:  # what rotted comes again as it is, a wrong answer does not
                del found[path]
            if doubtful:
                patiently(f"{len(doubtful)} files", read_rest)
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {len(paths)} files: {type(error).__name__}: {error}") from error
    return found
