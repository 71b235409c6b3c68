"""Creation of files on object storage, without trust in what a server says of its conditions.

`If-None-Match: *` is asked for, and what came of it is looked up: servers exist that answer 200 and keep the old object, that
overwrite it, that refuse the retry of a request whose answer was lost, or that know no conditions. No caller needs the
condition: names are made of what the file holds, so another writer's file is as good as ours. What it gives is that a file is
sent once, and that a report says which run committed it.
"""

import errno
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.storage.retry import patiently

WRITER = "writer"
"""Name of the metadata that tells who wrote an object, where storage keeps any."""
REFUSALS = 2
"""So many refusals of a condition while nothing is there, then the object is written without one; where conditions are not
implemented, after the first."""
CONDITION_FAILED = frozenset({409, 412})
ERROR_DOCUMENT_BYTES = 4096


@dataclass(frozen=True)
class Stored:
    """What storage says of an object."""

    size: int
    writer: str | None
    """The writer that the object names, None where storage keeps no metadata."""


class _RefusedError(OSError):
    """Storage refused to create an object, and does not have it."""


def create(fs: Any, path: str, content: bytes) -> bool:
    """Create an object if it is not there whole. Returns whether this call did, as far as can be known.

    Two writers at the very same time may both be told so by a server that ignores the condition. Raises OSError. Any: fsspec.
    """
    writer, refusals = uuid.uuid4().hex, 0

    def once() -> bool:
        nonlocal refusals
        stored = _look(fs, path)
        if stored is not None and stored.size == len(content):
            return stored.writer == writer
        try:
            return _write(fs, path, content, writer, exclusive=stored is None and refusals < REFUSALS)
        except _RefusedError as error:
            refusals += REFUSALS if error.errno == errno.ENOSYS else 1
            raise

    return patiently(path, once)


def replace(fs: Any, path: str, content: bytes) -> None:
    """Write an object, in the place of one that is there. Raises OSError where nothing is there then. Any: fsspec.

    Its size is not compared: another writer may have replaced it meanwhile.
    """

    def once() -> None:
        fs.pipe_file(path, content)
        if _look(fs, path) is None:
            raise OSError(errno.EAGAIN, f"accepted {len(content)} bytes, has nothing")

    patiently(path, once)


def is_error_document(content: bytes) -> bool:
    """Tell whether a body is an error of S3: some servers send one with the status 200."""
    head = content[:ERROR_DOCUMENT_BYTES].lstrip()
    return head.startswith((b"<?xml", b"<Error")) and b"<Error>" in head and b"</Error>" in head


def _write(fs: Any, path: str, content: bytes, writer: str, *, exclusive: bool) -> bool:
    """Write an object; returns whether what is there then is this writer's. Raises OSError where it is not there whole."""
    fault: OSError | None = None
    try:
        more: Mapping[str, Any] = {"Metadata": {WRITER: writer}} if _is_s3(fs) else {}
        fs.pipe_file(path, content, **({"mode": "create"} if exclusive else {}), **more)
    except OSError as error:
        fault = error
    stored = _look(fs, path)
    if stored is not None and stored.size == len(content):
        return fault is None if stored.writer is None else stored.writer == writer
    if fault is None:
        raise OSError(errno.EAGAIN, f"accepted {len(content)} bytes, has {stored.size if stored else 'nothing'}")
    if exclusive and _is_about_the_condition(fault):
        number = errno.ENOSYS if fault.errno == errno.ENOSYS else errno.EAGAIN
        raise _RefusedError(number, f"refused as if it were there, which it is not: {fault}") from fault
    raise fault


def _look(fs: Any, path: str) -> Stored | None:
    """Return what storage has under a name, asked anew; None where it has nothing."""
    fs.invalidate_cache(path.rsplit("/", 1)[0])
    try:
        if not _is_s3(fs):
            return Stored(int(fs.info(path)["size"]), None)
        bucket, key, _ = fs.split_path(path)
        head = fs.call_s3("head_object", Bucket=bucket, Key=key)
    except FileNotFoundError:
        return None
    return Stored(int(head["ContentLength"]), head.get("Metadata", {}).get(WRITER))


def _is_s3(fs: Any) -> bool:
    return "s3" in ([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol)


def _is_about_the_condition(error: OSError) -> bool:
    """Tell whether storage refused a condition, or does not know conditions."""
    response = getattr(error.__cause__, "response", None) or {}
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return isinstance(error, FileExistsError) or status in CONDITION_FAILED or error.errno == errno.ENOSYS
