"""Reducers from elsewhere: the entry-point group `framefold.reducers` of other distributions, and `register` in a process.

A plug-in is a class with the interface of `reducers.base.Reducer`; its config is the dataclass that annotates its attribute
`config`. An entry point is imported when its name is first used. Where an entry point and a registered class have the same
name, the entry point counts, so that the fingerprint does not depend on what was imported before.
"""

import dataclasses
import inspect
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar, get_type_hints

from reducers.base import Capture, ReducerSpecError
from reducers.origin import Distribution, note_origin, origin_of
from reducers.spec import NAME

GROUP = "framefold.reducers"
"""Entry points of this group are reducers: `name = "package.module:Class"`."""

R = TypeVar("R", bound=type)


class PluginError(ReducerSpecError):
    """A reducer of another distribution cannot be imported, or its class lacks part of the interface."""


_registered: dict[str, type] = {}
_reserved: set[str] = set()


def reserve(*names: str) -> None:
    """Keep names for our own reducers, as `reducers.registry` does: `register` and `find` refuse plug-ins that have them."""
    _reserved.update(names)


def register(kind: R) -> R:
    """Register a reducer class for this process and return it, so that it also works as a decorator.

    The class may be used in every spec string from then on. It replaces a class of the same module and qualified name, as
    when a notebook cell is run again. Raises PluginError if part of the interface is missing or the name is taken.
    """
    whose = f"{getattr(kind, '__module__', '?')}.{getattr(kind, '__qualname__', kind)}"
    _check_class(kind, whose)
    name = kind.name  # type: ignore[attr-defined]
    known = _registered.get(name)
    if known is not None and (known.__module__, known.__qualname__) != (kind.__module__, kind.__qualname__):
        raise PluginError(f"{whose}: reducer {name!r} is registered by {known.__module__}.{known.__qualname__}: rename it")
    _registered[name] = kind
    return kind


def names() -> tuple[str, ...]:
    """Return the names of all reducers from elsewhere, sorted; nothing is imported."""
    return tuple(sorted({*_registered, *(point.name for point in entry_points(group=GROUP))} - _reserved))


def find(name: str) -> tuple[type[Any], type[Any]] | None:
    """Return config class and class of a reducer from elsewhere, None if there is none.

    Any: each method has its own config. Raises PluginError if it cannot be imported or lacks part of the interface.
    """
    points = list(entry_points(group=GROUP, name=name))
    if len(points) > 1:
        offers = " and ".join(sorted(str(_distribution(point)) for point in points))
        raise PluginError(f"reducer {name!r} is offered by distributions {offers}: uninstall all but one")
    kind = _loaded(points[0]) if points else _registered.get(name)
    return None if kind is None else (config_of(kind), kind)


def config_of(kind: type) -> type[Any]:
    """Return the config class of a reducer class. Any: each method has its own. Raises PluginError if there is none."""
    try:
        config = get_type_hints(kind).get("config")
    except Exception as error:
        raise PluginError(f"the annotation of config cannot be resolved: {one_line(error)}") from error
    if not (isinstance(config, type) and dataclasses.is_dataclass(config)):
        raise PluginError(f"config must be annotated with a dataclass, got {config!r}")
    return config


def label(kind: type) -> str:
    """Return how messages name a reducer from elsewhere: with its distribution, or where it was registered."""
    origin = origin_of(kind)
    name = getattr(kind, "name", kind.__name__)
    return f"reducer {name!r} of " + (f"distribution {origin}" if origin else f"class {kind.__module__}.{kind.__qualname__}")


def is_plugin(kind: type) -> bool:
    """Return whether a reducer class comes from elsewhere."""
    return origin_of(kind) is not None or kind in _registered.values()


def one_line(error: BaseException) -> str:
    """Return type and message of an error on one line, at most 300 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _distribution(point: EntryPoint) -> Distribution:
    found = point.dist
    return Distribution(found.name, found.version) if found is not None else Distribution("unknown", "0")


def _loaded(point: EntryPoint) -> type:
    """Return the class of an entry point. Raises PluginError that names the distribution."""
    origin = _distribution(point)
    whose = f"reducer {point.name!r} of distribution {origin}"
    try:
        kind = point.load()
    except (Exception, SystemExit) as error:
        raise PluginError(f"{whose} cannot be imported from {point.value}: {one_line(error)}") from error
    _check_class(kind, whose, point.name)
    note_origin(kind, origin)
    return kind


def _check_class(kind: Any, whose: str, name: str | None = None) -> None:
    """Raise PluginError for the first part of the interface that a class lacks. Any: it comes from elsewhere."""
    try:
        problem = _problem(kind, name)
    except Exception as error:
        problem = one_line(error)
    if problem:
        raise PluginError(f"{whose} does not have the interface of a reducer: {problem}")


def _problem(kind: Any, name: str | None) -> str | None:
    """Return what a class lacks of the interface, None if nothing. Any: it comes from elsewhere."""
    if not isinstance(kind, type):
        return f"expected a class, got {kind!r}"
    own, version = getattr(kind, "name", None), getattr(kind, "version", None)
    if not isinstance(own, str) or NAME.fullmatch(own) is None or own != own.strip():
        return f"name must be a class attribute of letters, digits and underscores, got {own!r}"
    if name is not None and own != name:
        return f"its name is {own!r}, its entry point is named {name!r}"
    if own in _reserved:
        return f"the name {own!r} is taken by a reducer of framefold"
    if type(version) is not int or version < 1:
        return f"version must be a class attribute, an int of at least 1, got {version!r}"
    return _method_problem(kind) or _instance_problem(kind)


def _method_problem(kind: Any) -> str | None:
    """Return what is wrong with the methods and capabilities of a class, None if nothing. Any: it comes from elsewhere."""
    for method in ("reduce", "fingerprint"):
        if not callable(getattr(kind, method, None)):
            return f"{method} is missing (derive from framefold.ReducerBase)"
    for capability in ("needs_text", "modifies_tower"):
        if not isinstance(getattr(kind, capability, None), bool):
            return f"{capability} must be a class attribute, True or False (derive from framefold.ReducerBase)"
    if kind.modifies_tower:
        return "modifies_tower is True, and only reducers of framefold can work inside the tower"
    try:
        inspect.signature(kind.reduce).bind(None, None, None)
    except TypeError:
        return "reduce must take (tokens, text=None)"
    return None


def _instance_problem(kind: type) -> str | None:
    """Return what is wrong with the config, or with the captures of an instance of defaults, None if nothing."""
    try:
        reducer = kind(config_of(kind)())
    except PluginError as error:
        return str(error)
    except Exception as error:
        return f"it cannot be built from the defaults of its config: {one_line(error)}"
    if not dataclasses.is_dataclass(getattr(reducer, "config", None)):
        return "an instance must keep its config as the attribute config"
    needs = getattr(reducer, "needs", None)
    if not isinstance(needs, frozenset) or not all(isinstance(need, Capture) for need in needs):
        return f"needs must be a frozenset of framefold.Capture, got {needs!r}"
    return None
