"""From keyword arguments to a job: every flag of a command is a setting of the same name, in whichever config it lies."""

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pipeline.errors import ConfigError

J = TypeVar("J")


def job_of(kind: type[J], settings: Mapping[str, Any], what: str, hidden: Collection[str] = ()) -> J:
    """Return a job of its settings, nested configs filled by name; messages do not offer `hidden` names. Any: of all types.

    Raises ConfigError, in one line, for a setting that is unknown, missing or of a wrong type.
    """
    known = _names(kind)
    for name in settings:
        if name not in known:
            offered = sorted(known.difference(hidden))
            near = get_close_matches(name, offered, n=1)
            hint = f"did you mean {near[0]}?" if near else f"expected some of {', '.join(offered)}"
            raise ConfigError(f"{what}: unknown setting {name!r}, {hint}")
    return _built(kind, settings, what)


def _names(kind: type[Any]) -> set[str]:
    """Return the names of all settings of a config and those inside it. Any: each has its own fields."""
    hints = _hints(kind)
    inner = [_names(hints[field.name]) for field in fields(kind) if is_dataclass(hints[field.name])]
    return {field.name for field in fields(kind) if not is_dataclass(hints[field.name])}.union(*inner)


def _hints(kind: type[Any]) -> dict[str, Any]:
    return {name: _plain(hint) for name, hint in get_type_hints(kind).items()}


def _plain(hint: Any) -> Any:
    """Return a type hint without the marks of the command line. Any: type hints have no common type."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _built(kind: type[J], settings: Mapping[str, Any], what: str) -> J:
    """Return a config, and those inside it, of the settings that name its fields."""
    hints, values = _hints(kind), {}
    for field in fields(kind):  # type: ignore[arg-type]
        hint = hints[field.name]
        if isinstance(hint, type) and is_dataclass(hint):
            values[field.name] = _built(hint, settings, what)
        elif field.name in settings:
            values[field.name] = _value(settings[field.name], hint, f"{what}: {field.name}")
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ConfigError(f"{what}: the setting {field.name} is missing")
    return kind(**values)


def _value(value: Any, hint: Any, what: str) -> Any:
    """Return a value as a field takes it: paths and JSON objects as text. Any: of all types. Raises ConfigError."""
    options = _options(hint)
    if str in options and isinstance(value, os.PathLike):
        return os.fspath(value)
    if str in options and isinstance(value, Mapping):
        return json.dumps(dict(value))
    if any(get_origin(option) is tuple for option in options) and isinstance(value, list | tuple):
        return tuple(value)
    if float in options and type(value) is int:
        return float(value)
    if not any(_fits(value, option) for option in options):
        raise ConfigError(f"{what} must be {_said(options)}, got {value!r}")
    return value


def _options(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the one type there is. Any: type hints have no common type."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _fits(value: Any, option: Any) -> bool:
    if get_origin(option) is Literal:
        return value in get_args(option)
    return type(value) is option if isinstance(option, type) else False


def _said(options: tuple[Any, ...]) -> str:
    """Return how a message names the types that a setting may have. Any: type hints have no common type."""
    names = []
    for option in options:
        if get_origin(option) is Literal:
            names += [repr(choice) for choice in get_args(option)]
        else:
            names.append("None" if option is type(None) else getattr(option, "__name__", str(option)))
    return " or ".join(names)
