"""The stored encode specs of a token store, and which of them are meant where there are several.

<root>/specs/<fingerprint>.json                 everything the tokens depend on
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pipeline.errors import ConfigError, StoreError
from pipeline.fingerprint import canonical_json, fingerprint
from pipeline.schema import SCHEMA_VERSION
from pipeline.storage.filesystem import create_exclusive, is_local, list_files, read_bytes, renew


def fingerprints(fs: Any, root: str) -> list[str]:
    """Return every fingerprint under a root, sorted."""
    return [path.rsplit("/", 1)[-1].removesuffix(".json") for path in list_files(fs, f"{root}/specs", ".json")]


def matching_fingerprints(fs: Any, root: str, fingerprint: str | None, reducer: str | None) -> list[str]:
    """Return the fingerprints that begin so and have this reducer, sorted. Raises ConfigError where there is no store."""
    names = fingerprints(fs, root)
    if not names:
        where = root if is_local(fs) else fs.unstrip_protocol(root)
        raise ConfigError(f"{where}: no token store there (expected specs/<fingerprint>.json)")
    if reducer is None:
        return [name for name in names if name.startswith(fingerprint or "")]
    return chosen({name: read_spec(fs, root, name) for name in names}, fingerprint, reducer)


def spec_path(root: str, spec: Mapping[str, Any]) -> str:
    """Return where a spec is stored below a root."""
    return f"{root}/specs/{fingerprint(spec)}.json"


def write_spec(fs: Any, root: str, spec: Mapping[str, Any]) -> None:
    """Write a spec unless it is stored already; replace a damaged one. Any: an fsspec file system."""
    path, content = spec_path(root, spec), canonical_json(spec).encode()
    if not create_exclusive(fs, path, content) and read_bytes(fs, path) != content:
        renew(fs, path, content)


def read_spec(fs: Any, root: str, name: str) -> dict[str, Any]:
    """Return the spec of a fingerprint. Raises StoreError if it is not what its name says, ConfigError if it is newer."""
    path = f"{root}/specs/{name}.json"
    content = read_bytes(fs, path)
    if hashlib.sha256(content).hexdigest() != name:
        raise StoreError(f"{path}: the spec was changed after it was written; its SHA-256 is not its name")
    spec: dict[str, Any] = json.loads(content)
    found = spec.get("schema_version")
    if not isinstance(found, int) or found > SCHEMA_VERSION:
        raise ConfigError(f"{root}: written with store schema {found}, this framefold reads up to {SCHEMA_VERSION}: upgrade it")
    return spec


def reducer_name(fs: Any, root: str, name: str) -> str:
    """Return the name of the reducer of a fingerprint, for messages. Any: an fsspec file system."""
    try:
        return str(read_spec(fs, root, name).get("reducer", {}).get("name", "?"))
    except (StoreError, ConfigError):
        return "unreadable"


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
