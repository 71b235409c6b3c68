"""One digest for everything that stored bytes depend on."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pipeline.errors import ConfigError


def canonical_json(value: Mapping[str, Any]) -> str:
    """Return JSON that is the same for equal values: keys sorted, no blanks. Raises ConfigError for NaN and odd types."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"a spec must be plain JSON: {error}") from error


def fingerprint(spec: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a spec, 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(spec).encode()).hexdigest()
