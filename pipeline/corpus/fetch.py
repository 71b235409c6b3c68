"""The bytes of a video: fetched through fsspec, hashed on the way, and told apart before a native library sees them.

A file is opened only with the demuxer that its first bytes call for. Playlists and other texts that make a demuxer read
further files or URLs are refused by what they are, whatever they are called.
"""

import hashlib
import io
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.corpus.start_codes import elementary_demuxer, is_transport_stream
from pipeline.errors import VideoError
from pipeline.names import UNSTORABLE, local_path
from pipeline.storage.filesystem import object_at
from pipeline.storage.object_storage import is_error_document
from pipeline.storage.retry import patiently

REFUSED = frozenset({"reference", "dask", "generic"})
"""fsspec's protocols that open whatever a further file names, or that speak pickle with a server."""
CHUNK_BYTES = 4 << 20
HEAD_BYTES = 4096

BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"moof")
"""First boxes of ISO base media and QuickTime files, at offset 4."""

MAGIC = (
    (0, b"\x1a\x45\xdf\xa3", "matroska"),
    (0, b"FLV\x01", "flv"),
    (0, b"GIF8", "gif"),
    (0, b"OggS", "ogg"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    (0, b"DKIF", "ivf"),
    (0, b"YUV4MPEG2", "yuv4mpegpipe"),
    (0, b".RMF", "rm"),
    (0, b"\x06\x0e\x2b\x34", "mxf"),
    (0, b"nut/multimedia", "nut"),
    (0, b"\x12\x00\x0a", "obu"),
    (0, b"\x1f\x07\x00", "dv"),
)
AUDIO = ((0, b"ID3"), (0, b"fLaC"), (8, b"WAVE"), (0, b"FORM"), (0, b"\xff\xfb"), (0, b"\xff\xf1"), (0, b".snd"))
PLAYLISTS = (b"#extm3u", b"ffconcat", b"[playlist]", b"<mpd", b"<smoothstreaming", b"<asx", b"<smil", b"v=0", b"[reference]")
"""Beginnings, in lower case, of texts that name other files or addresses."""


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A local copy of a video and what identifies its content."""

    path: Path
    sha256: str
    bytes: int
    demuxer: str
    """Name of the FFmpeg demuxer that its first bytes call for."""


def fetch(uri: str, into: Path, max_bytes: int, storage_options: Mapping[str, Any] | None = None) -> Fetched:
    """Copy the bytes at any fsspec URL into a file. What is no video by its first bytes, or too large, is not copied.

    Raises:
        VideoError: NOT_FOUND, UNREADABLE, EMPTY, TOO_LARGE, FORBIDDEN_PROTOCOL, NO_VIDEO_STREAM or CORRUPT.
    """
    check_protocol(uri)
    try:
        if local_path(uri) is not None:
            size, sha256, head = _copy(uri, into, max_bytes, storage_options)
        else:
            size, sha256, head = patiently(uri, lambda: _copy(uri, into, max_bytes, storage_options))
    except VideoError:
        raise
    except FileNotFoundError as error:
        raise VideoError("NOT_FOUND", f"{uri}: no such file") from error
    except Exception as error:  # OSError, ValueError, ImportError; aiohttp's and botocore's own, which are none of these
        raise VideoError("UNREADABLE", f"{uri}: {type(error).__name__}: {error}") from error
    if size == 0:
        raise VideoError("EMPTY", "the file has 0 bytes")
    return Fetched(path=into, sha256=sha256, bytes=size, demuxer=demuxer_of(head))


def _copy(uri: str, into: Path, max_bytes: int, storage_options: Mapping[str, Any] | None) -> tuple[int, str, bytes]:
    """Copy all bytes; returns how many, their SHA-256 and the first of them. Raises OSError if some are missing."""
    digest, size, head = hashlib.sha256(), 0, b""
    with _open(uri, storage_options) as source, into.open("wb") as copy:
        announced = getattr(source, "size", None)
        _check_bytes(announced or 0, max_bytes)
        for chunk in _chunks(source):
            if not head:
                head = chunk[:HEAD_BYTES]
                if is_error_document(head) and announced not in (None, len(head.rstrip())):
                    raise OSError("storage sent an error in the place of the file")
                demuxer_of(head)  # what is no video is not copied
            size += len(chunk)
            _check_bytes(size, max_bytes)
            digest.update(chunk)
            copy.write(chunk)
        if announced is not None and announced != size:
            raise OSError(f"expected {announced} bytes, got {size}")
    return size, digest.hexdigest(), head


def check_protocol(uri: str) -> None:
    """Raise VideoError FORBIDDEN_PROTOCOL for a URL whose protocol reads what a further file tells it to.

    UNREADABLE for the URI of an object whose name cannot be stored.
    """
    if uri.startswith(UNSTORABLE):
        raise VideoError("UNREADABLE", f"{uri.removeprefix(UNSTORABLE)}: the name is not valid Unicode: rename the object")
    protocols = {part.split("://")[0].lower() for part in uri.split("::")} if local_path(uri) is None else set()
    if refused := protocols & REFUSED:
        what = f"protocol {min(refused)}:// is not allowed: it refers to other files or runs what it reads"
        raise VideoError("FORBIDDEN_PROTOCOL", what)


def _chunks(source: Any) -> Iterator[bytes]:
    """Yield the bytes of a file, the first chunk long enough to tell what it is: HTTP gives few bytes at a time."""
    first = b""
    while len(first) < HEAD_BYTES and (chunk := source.read(CHUNK_BYTES)):
        first += chunk
    if first:
        yield first
    while chunk := source.read(CHUNK_BYTES):
        yield chunk


def _check_bytes(size: int, max_bytes: int) -> None:
    if max_bytes and size > max_bytes:
        raise VideoError("TOO_LARGE", f"{size} bytes or more, more than {max_bytes}")


def content_sha256(uri: str, storage_options: Mapping[str, Any] | None = None) -> str | None:
    """Return the SHA-256 of the bytes at any fsspec URL, None where they cannot be read or `fetch` would refuse to."""
    try:
        check_protocol(uri)
        with _open(uri, storage_options) as source:
            return hashlib.file_digest(source, "sha256").hexdigest()
    except Exception:  # OSError, ValueError, ImportError, VideoError, and what aiohttp and botocore raise
        return None  # the decode stage meets the same fault and gives it a class


def _open(uri: str, storage_options: Mapping[str, Any] | None) -> Any:
    """Return a readable file, a context manager. Any: fsspec's files are untyped."""
    path = local_path(uri)
    if path is not None:
        return _regular(path)
    fs, name = object_at(uri, storage_options)  # fsspec.open would take `[` and `*` in a name for a pattern
    return fs.open(name, "rb")


def _regular(path: Path) -> Any:
    """Open a file on local disk; a pipe or a device, which could keep us waiting for ever, is refused. Any: see `_open`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise OSError("not a regular file")
    return _Sized(descriptor, found.st_size)


class _Sized(io.FileIO):
    """A local file that knows its size, as fsspec's files do."""

    def __init__(self, descriptor: int, size: int) -> None:
        super().__init__(descriptor, "rb")
        self.size = size


def demuxer_of(head: bytes) -> str:
    """Return the demuxer for a file that begins like this. Raises VideoError where no video can be in it."""
    if head[4:8] in BOXES:
        return "mov"
    if head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"CDXA"):
        return "avi" if head[8:12] == b"AVI " else "mpeg"
    for offset, magic, name in MAGIC:
        if head[offset:].startswith(magic):
            return name
    if found := elementary_demuxer(head) or ("mpegts" if is_transport_stream(head) else ""):
        return found
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(PLAYLISTS) or (text.startswith((b"<?xml", b"<")) and any(p in text for p in PLAYLISTS)):
        raise VideoError("FORBIDDEN_PROTOCOL", "a playlist or manifest that names other files, not a video")
    if any(head[offset:].startswith(magic) for offset, magic in AUDIO):
        raise VideoError("NO_VIDEO_STREAM", "an audio file")
    raise VideoError("CORRUPT", f"no known video container begins with {head[:12]!r}")


STATES = (
    "ETag", "etag", "md5", "md5Hash", "content_md5", "Content-MD5", "Digest", "mtime", "LastModified", "last_modified",
    "Last-Modified", "updated", "modify",
)  # fmt: skip
"""Where fsspec's file systems tell an object's state, surest first; the names with a dash are those of HTTP."""


def source_hint(info: Mapping[str, Any]) -> str:
    """Return what a listing tells about an object's state, as canonical JSON: its size and its ETag or time of change."""
    known: dict[str, Any] = {} if info.get("size") is None else {"size": info["size"]}
    for name in STATES:
        if info.get(name) is not None:
            value = info[name]
            known[name.lower()] = round(value * 1e9) if isinstance(value, float) else str(value).strip('"')
            break
    return json.dumps(known, sort_keys=True, separators=(",", ":"))
