"""Reducers that read the question: from a spec string, and tried before any question is answered."""

from typing import TYPE_CHECKING

from pipeline.errors import ConfigError

if TYPE_CHECKING:  # torch loads when a spec is parsed, not when a flag is
    from reducers.base import Reducer


def parse_text_reducer(spec: str) -> "Reducer":
    """Return the reducer of a spec string that reads the question. Raises ConfigError."""
    from reducers.base import ReducerSpecError
    from reducers.registry import parse

    try:
        reducer = parse(spec)
    except ReducerSpecError as error:
        raise ConfigError(str(error)) from error
    if not reducer.needs_text:
        raise ConfigError(f"{reducer.name} does not read the question: pass it to framefold encode as --reducer")
    return reducer


def check_text_reducer(spec: str) -> None:
    """Raise ConfigError if a reducer does not read the question, or cannot work on zeros: a plug-in may break the interface."""
    from reducers.base import ReducerError
    from reducers.trial import Geometry, try_on_zeros

    try:
        try_on_zeros(parse_text_reducer(spec), Geometry(frames=2, grid=(4, 4), width=32, heads=2))
    except ReducerError as error:
        raise ConfigError(f"{spec} cannot work on stored patches: {error}") from error
