"""Where the file of a manifest's URI lies: as it is written, or as people and programs also write the same thing."""

import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.corpus.fetch import check_protocol, source_hint
from pipeline.corpus.segments import HTTP, escaped, file_of, span_of
from pipeline.names import ODD, local_names, local_path, local_uri, remote_uri, unquoted
from pipeline.redaction import redact
from pipeline.storage.filesystem import object_at
from pipeline.storage.retry import patiently

NOTHING = "{}"
"""The hint of a file of which storage tells nothing."""


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """Where the URI of a file, or of a segment of one, leads."""

    uri: str
    """What can be stored, and leads to the file from any folder and machine that has it."""
    hint: str
    """What storage tells of it, see `fetch.source_hint`."""


def resolve(uri: str, manifest: str, storage_options: Mapping[str, Any] | None = None) -> Resolved:
    """Return where a URI leads: the first of `spellings` that storage knows, else the URI itself.

    The decode stage meets what storage does not know and gives it a class.
    """
    file = file_of(uri)
    for spelling in spellings(file, manifest):
        hint = hint_of(spelling, storage_options)
        if hint != NOTHING:
            is_same = spelling == file and _is_definite(file)
            return Resolved(uri=uri if is_same else _definite(spelling) + _fragment(uri), hint=hint)
    return Resolved(uri=uri if _is_storable(uri) else _definite(file) + _fragment(uri), hint=NOTHING)


def spellings(uri: str, manifest: str) -> Iterator[str]:
    """Yield what the URI of a file may mean, likeliest first.

    As it is; without spaces around it; a relative path below the folder of the manifest; each of these percent-decoded, but
    those of HTTP. `names.local_path` knows what local ones may mean, `file:///a%20b.mp4` and `~` among them.
    """
    texts = dict.fromkeys((uri, uri.strip()))
    for text in texts if uri.startswith(HTTP) else dict.fromkeys((*texts, *map(unquoted, texts))):
        yield text
        path = local_path(text)
        if path is not None and not path.is_absolute() and local_names(text) == [text]:
            yield _beside(manifest, text)


def _beside(manifest: str, path: str) -> str:
    folder = local_path(manifest)
    return f"{manifest.rpartition('/')[0]}/{path}" if folder is None else str(folder.absolute().parent / path)


def hint_of(uri: str, storage_options: Mapping[str, Any] | None) -> str:
    """Return what storage says about an object, `{}` where it says nothing."""
    try:
        path = local_path(uri)
        if path is not None:
            known = path.stat()
            info = {"size": known.st_size, "mtime": known.st_mtime}
            return source_hint(info) if stat.S_ISREG(known.st_mode) else NOTHING
        check_protocol(uri)
        fs, name = object_at(uri, storage_options)
        return source_hint(patiently(uri, lambda: fs.info(name)))
    except Exception:  # OSError, ValueError, ImportError, VideoError, and what aiohttp and botocore raise
        return NOTHING  # the decode stage meets the same fault and gives it a class


def _is_definite(uri: str) -> bool:
    """Tell whether a URI is stored as it is and means one place, wherever it is read."""
    names = local_names(uri)
    return _is_storable(uri) and (not names or (len(names) == 1 and names[0].startswith("/") and redact(uri) == uri))


def _is_storable(uri: str) -> bool:
    return ODD.search(uri) is None or (not local_names(uri) and remote_uri(uri) == uri)


def _definite(uri: str) -> str:
    path = local_path(uri)
    return escaped(remote_uri(uri) if path is None else local_uri(str(path.absolute())))


def _fragment(uri: str) -> str:
    return uri[len(span_of(uri)[0]) :]
