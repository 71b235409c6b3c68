"""Take secrets out of a text before it is logged, reported or stored: in URLs by their form, elsewhere by their value."""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

HIDDEN = "***"
NAMES = re.compile(r"key|secret|token|passw|pwd|credential|auth|sas\b|cookie|connection_string", re.IGNORECASE)
"""Storage options whose values are secrets."""
SHORTEST = 4
"""Shorter values are not looked for: they would be found in every word."""
USERINFO = re.compile(r"\b([a-z][a-z0-9+.-]*)://([^/?#\s'\"]+)@", re.IGNORECASE)
QUERY = re.compile(
    r"(?<=[?&;])(x-(?:amz|goog)-[\w-]+|[\w.-]*(?:sig|token|secret|passw|pwd|key|credential|auth|expires|policy)[\w.-]*)=[^&;#\s'\"]*",
    re.IGNORECASE,
)
"""Parameters of a URL that sign it, or that change with each signing."""


def redact(text: str, secrets: Collection[str] = ()) -> str:
    """Return a text without users and passwords of URLs, without signatures of URLs, and without the given values."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return QUERY.sub(rf"\1={HIDDEN}", USERINFO.sub(_userinfo, text))


def redact_all(value: Any, secrets: Collection[str] = ()) -> Any:
    """Return plain data with every text in it redacted. Any: whatever JSON can hold."""
    if isinstance(value, str):
        return redact(value, secrets)
    if isinstance(value, Mapping):
        return {key: redact_all(one, secrets) for key, one in value.items()}
    return [redact_all(one, secrets) for one in value] if isinstance(value, (list, tuple)) else value


def secrets_of(options: Mapping[str, Any]) -> frozenset[str]:
    """Return the values in storage options, at any depth, that their names call secrets."""
    return frozenset(value for value in _named(options, "") if len(value) >= SHORTEST)


def _named(value: Any, name: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        for inner, one in value.items():
            yield from _named(one, inner if not NAMES.search(name) else name)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _named(one, name)
    elif isinstance(value, str) and NAMES.search(name):
        yield value


def _userinfo(found: re.Match[str]) -> str:
    scheme, user = found.groups()
    is_name = ":" not in user and not scheme.lower().startswith(("http", "ftp"))  # of SSH, or an Azure container
    return found.group(0) if is_name else f"{scheme}://{HIDDEN}@"
