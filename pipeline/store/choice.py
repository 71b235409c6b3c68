"""Which entries of a store are meant where it holds several fingerprints: by fingerprint, or by reducer."""

import json
from typing import Any

from pipeline.errors import ConfigError


def chosen(specs: dict[str, dict[str, Any]], fingerprint: str | None, reducer: str | None) -> list[str]:
    """Return the fingerprints that are meant, sorted.

    Args:
        specs: encode spec of each fingerprint.
        fingerprint: its beginning; None for any.
        reducer: a spec such as `nest(keep=256)`, of which all parameters must be equal, or the name of a method alone.

    Raises:
        ConfigError: no reducer has that spec.
    """
    names = sorted(name for name in specs if name.startswith(fingerprint or ""))
    if reducer is None:
        return names
    held = [name for name in names if specs[name].get("reducer", {}).get("name") == reducer.strip()]
    if held:  # of a plug-in too that is not installed here
        return held
    wanted = _wanted(reducer)
    return [name for name in names if wanted.items() <= specs[name].get("reducer", {}).items()]


def _wanted(reducer: str) -> dict[str, Any]:
    """Return the part of a spec that a reducer makes. Raises ConfigError."""
    from reducers.base import ReducerSpecError, describe
    from reducers.registry import parse

    try:
        found: dict[str, Any] = json.loads(json.dumps(describe(parse(reducer))))
    except ReducerSpecError as error:
        raise ConfigError(f"--reducer: {error}") from error
    is_name = "(" not in reducer and "|" not in reducer
    return {"name": found["name"]} if is_name else {"name": found["name"], "params": found["params"]}
