"""The public library: reduce visual tokens, register a reducer, read a token store, encode, answer and evaluate in-process.

Names load when they are first used: importing this package imports neither torch nor Arrow, and `reducer` needs torch alone.
Every other package of the project may change between versions; the names of `__all__` are what other code may rely on.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from framefold._shadows import check_no_shadows

if TYPE_CHECKING:
    from framefold.commands import answer, encode, evaluate
    from framefold.store import TokenStore
    from pipeline.errors import ConfigError, PipelineError, StorageError, StoreError, VideoError
    from pipeline.store.entries import Entry, EntryTensors
    from reducers.base import (
        BudgetError,
        Capture,
        ReducedTokens,
        Reducer,
        ReducerError,
        ReducerSpecError,
        TextQuery,
        VisualTokens,
    )
    from reducers.base import Fingerprinted as ReducerBase
    from reducers.ops.layout import keep_patches
    from reducers.plugins import PluginError
    from reducers.registry import parse as reducer
    from reducers.registry import register as register_reducer
    from reducers.trial import InterfaceError, check_reducer

    __version__: str

__all__ = [
    "BudgetError",
    "Capture",
    "ConfigError",
    "Entry",
    "EntryTensors",
    "InterfaceError",
    "PipelineError",
    "PluginError",
    "ReducedTokens",
    "Reducer",
    "ReducerBase",
    "ReducerError",
    "ReducerSpecError",
    "StorageError",
    "StoreError",
    "TextQuery",
    "TokenStore",
    "VideoError",
    "VisualTokens",
    "__version__",
    "answer",
    "check_reducer",
    "encode",
    "evaluate",
    "keep_patches",
    "reducer",
    "register_reducer",
]

_HOMES = {
    "framefold.commands": ("answer", "encode", "evaluate"),
    "framefold.store": ("TokenStore",),
    "pipeline.errors": ("ConfigError", "PipelineError", "StorageError", "StoreError", "VideoError"),
    "pipeline.store.entries": ("Entry", "EntryTensors"),
    "reducers.base": (
        *("BudgetError", "Capture", "ReducedTokens", "Reducer", "ReducerError", "ReducerSpecError"),
        *("TextQuery", "VisualTokens"),
    ),
    "reducers.ops.layout": ("keep_patches",),
    "reducers.plugins": ("PluginError",),
    "reducers.trial": ("InterfaceError", "check_reducer"),
}
"""Modules, and the names that they give under their own name."""
_SOURCES = {name: (home, name) for home, names in _HOMES.items() for name in names} | {
    "ReducerBase": ("reducers.base", "Fingerprinted"),
    "reducer": ("reducers.registry", "parse"),
    "register_reducer": ("reducers.registry", "register"),
}
"""Public name to module and name in it."""

check_no_shadows()


def __getattr__(name: str) -> Any:
    """Load a public name. Any: names are classes, functions and a string. Raises AttributeError for any other."""
    if name == "__version__":
        from importlib.metadata import version

        return version("framefold")
    if name not in _SOURCES:
        raise AttributeError(f"module 'framefold' has no attribute {name!r}, expected one of {', '.join(__all__)}")
    home, original = _SOURCES[name]
    value = getattr(import_module(home), original)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
