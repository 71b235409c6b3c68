"""Names of files as ids, as URIs and in lines of text.

An id is the name itself: letters, spaces and format characters of any script stay as they are. Two kinds of characters do not:
control characters and line separators (Unicode Cc, Zl, Zp), which would break a line, and bytes that are not UTF-8, which no
column of text can hold. They are percent-escaped, `tab%09name`, `latin1%E9`. In a name that has one of them, and in a name that
already reads like such an escape, `%` becomes `%25`, so that different names have different ids; all other names, `100%25` and
`a%20b` among them, stay as they are.

A local file whose name a plain URL cannot say unambiguously has the URI of RFC 8089 with a host, `file://localhost/latin1%E9.mp4`,
whose path is always percent-decoded. In `file:///a%20b.mp4` it is decoded only where no file has the literal name.
"""

import contextlib
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

from pipeline.redaction import redact

MAX_ID_BYTES = 1024
"""A longer id ends in a digest instead."""
DIGEST_DIGITS = 32

ODD = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""Control characters, line separators, and surrogates: how Python reads bytes that are not UTF-8."""
ODD_OR_PERCENT = re.compile(f"{ODD.pattern[:-1]}%]")
ESCAPE = re.compile(rb"%([0-9A-F]{2})")
"""As `escape` writes it: names with lower-case digits are never taken for escapes."""
QUOTED = re.compile(r"%[0-9A-Fa-f]{2}")
LOCAL = re.compile(r"(?:file|local):(?P<slashes>//(?P<host>localhost(?=/))?)?(?P<path>.*)", re.DOTALL | re.IGNORECASE)
"""A URL of a local file; programs also write it with one slash, or none."""
UNSTORABLE = "unstorable+"
"""Begins the URI of an object whose name cannot be stored: it stands for a failure and is never opened."""


def escape(name: str) -> str:
    """Return a name as an id. Different names of files have different ids."""
    return name if _is_its_own_id(name) else ODD_OR_PERCENT.sub(_percent, name)


def _is_its_own_id(name: str) -> bool:
    """Tell whether a name holds nothing to escape, and nothing that could be the escape of another name.

    If an id were both such a name and the escape of another, decoding it would lead to that other, which is escaped because
    decoding it, often enough, leads to a character that has to be; so would decoding this one.
    """
    while not ODD.search(name):
        decoded = ESCAPE.sub(lambda found: bytes.fromhex(found[1].decode()), name.encode()).decode("utf-8", "surrogateescape")
        if decoded == name:
            return True
        name = decoded
    return False


def clean_id(text: str) -> str:
    """Return an id that a person or a program wrote: as it is, but for what cannot be stored or would break a line."""
    return bounded(escape(text) if ODD.search(text) else text)


def bounded(name: str) -> str:
    """Return an id of at most `MAX_ID_BYTES`: a longer one is cut and ends in a digest of the whole."""
    return name if len(encoded(name)) <= MAX_ID_BYTES else with_digest(name, name)


def with_digest(name: str, whole: str) -> str:
    """Return the beginning of an id with the digest of a name at its end."""
    digest = hashlib.sha256(whole.encode("unicode_escape")).hexdigest()[:DIGEST_DIGITS]
    return f"{encoded(name)[: MAX_ID_BYTES - DIGEST_DIGITS - 1].decode(errors='ignore')}~{digest}"


def encoded(name: str) -> bytes:
    """Return the bytes of a name: those that Python read as surrogates, else those of the surrogates themselves."""
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return name.encode("utf-8", "surrogatepass")


def _percent(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in encoded(found.group()))


def one_line(text: str) -> str:
    """Return text for one line of output: what would end the line, or cannot be written at all, is percent-escaped."""
    return ODD.sub(_percent, text)


def json_line(value: Any, *, ascii_only: bool = False) -> str:
    """Return JSON on one line for every reader, whatever it takes for a line break. Any: whatever JSON can hold."""
    return ODD.sub(lambda found: f"\\u{ord(found.group()):04x}", json.dumps(value, ensure_ascii=ascii_only))


def local_uri(path: str) -> str:
    """Return the URI of a local file by its absolute path: one that can be stored and leads to this file alone."""
    plain = f"file://{path}"
    is_plain = not (ODD.search(plain) or QUOTED.search(plain)) and redact(plain) == plain
    return plain if is_plain else f"file://localhost{quote_from_bytes(encoded(path))}"


def remote_uri(uri: str) -> str:
    """Return the URI of an object elsewhere, one that stands for a failure if the name of the object is not Unicode."""
    try:
        uri.encode()
    except UnicodeEncodeError:
        return UNSTORABLE + one_line(uri)
    return uri


def local_names(uri: str) -> list[str]:
    """Return the paths on local disk that a URI may mean, the literal one first; none for a URL of something else."""
    found = LOCAL.fullmatch(uri)
    if found is None:
        names = [] if "://" in uri else [uri]
    elif found["host"]:
        return [unquoted(found["path"])]
    else:
        names = [*([] if found["slashes"] else [uri]), found["path"], unquoted(found["path"])]
    return list(dict.fromkeys([*names, *(_at_home(name) for name in names if name.startswith("~"))]))


def _at_home(name: str) -> str:
    with contextlib.suppress(RuntimeError):  # no such user
        return str(Path(name).expanduser())
    return name


def local_path(uri: str) -> Path | None:
    """Return the path of a URI on local disk, None elsewhere. Names with `::` or `*` are names here, not fsspec's chains."""
    names = local_names(uri)
    if not names:
        return None
    return Path(names[0] if len(names) == 1 else next(filter(os.path.lexists, names), names[0]))


def unquoted(path: str) -> str:
    """Return a path without percent escapes; bytes that are not UTF-8 are surrogates, as in every name that Python reads."""
    return unquote_to_bytes(encoded(path)).decode("utf-8", "surrogateescape") if QUOTED.search(path) else path
