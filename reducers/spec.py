"""The language of spec strings: `name(key=value, ...)`, and two of them joined by `|` or `+` for a composition."""

import re
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal, get_args, get_origin, get_type_hints

from reducers.base import ReducerSpecError

NAME = re.compile(r"\s*([A-Za-z_]\w*(?:\+(?!\s*[A-Za-z_]))?)\s*")
"""A plus sign belongs to the name unless another name follows: `prumerge+` is one name, `alloc+prumerge+` are two."""
ARGUMENTS = re.compile(r"\(([^()]*)\)\s*")
EXAMPLES = "prumerge+(ratio=0.125) or evs(ratio=0.25)|visionzip"


@dataclass(frozen=True, kw_only=True)
class Term:
    """One name of a spec with its arguments, not parsed yet."""

    name: str
    arguments: str
    """What stands between the brackets, empty without."""


def terms(spec: str) -> list[Term]:
    """Return the names of a spec with their arguments, in order. Raises ReducerSpecError."""
    found, at = [], 0
    while True:
        name = NAME.match(spec, at)
        if name is None:
            raise ReducerSpecError(f"expected a reducer such as {EXAMPLES}, got {spec!r}")
        listed = ARGUMENTS.match(spec, name.end())
        at = (listed or name).end()
        found.append(Term(name=name.group(1), arguments=listed.group(1) if listed else ""))
        if at == len(spec):
            return found
        if spec[at] not in "|+":
            raise ReducerSpecError(f"expected a reducer such as {EXAMPLES}, got {spec!r}")
        at += 1


def arguments(term: Term, config: type[Any]) -> dict[str, Any]:
    """Parse `key=value, ...` by the types of a config's fields; a choice of just one field may stand alone.

    Any: each method has its own config. Raises ReducerSpecError.
    """
    hints = get_type_hints(config)
    found: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in term.arguments.split(","))):
        key, equals, text = (piece.strip() for piece in part.partition("="))
        if not equals:
            key, text = _field_of(part, hints), part
        if key not in hints:
            raise ReducerSpecError(f"{term.name}: unknown parameter {part!r}, expected some of {', '.join(hints) or 'none'}")
        if key in found:
            raise ReducerSpecError(f"{term.name}: parameter {key!r} is given twice")
        try:
            found[key] = _value(text, hints[key])
        except (ValueError, ZeroDivisionError) as error:
            raise ReducerSpecError(f"{term.name}: expected {key} to be {type_name(hints[key])}, got {text!r}") from error
    return found


def type_name(kind: Any) -> str:
    """Return how a type hint is shown: names, or the choices. Any: type hints have no common type."""
    options = [option for option in _options(kind) if option is not type(None)]
    choices = [choice for option in options for choice in get_args(option)]
    return "|".join(map(str, choices)) if choices else "|".join(option.__name__ for option in options)


def _options(kind: Any) -> tuple[Any, ...]:
    return (kind,) if get_origin(kind) is Literal else get_args(kind) or (kind,)


def _field_of(word: str, hints: dict[str, Any]) -> str:
    """Return the one field that has a word among its choices, or the word itself."""
    fields = [key for key, kind in hints.items() for option in _options(kind) if word in get_args(option)]
    return fields[0] if len(fields) == 1 else word


def _value(text: str, kind: Any) -> Any:
    """Parse one value. Any: the kinds are type hints, the values theirs. Raises ValueError."""
    options = _options(kind)
    if type(None) in options and text.lower() == "none":
        return None
    if any(text.strip("'\"") in get_args(option) for option in options):
        return text.strip("'\"")
    if bool in options:
        return {"true": True, "false": False}[text.lower()] if text.lower() in ("true", "false") else _refuse(text)
    if int in options:
        return int(text)
    if float in options:
        top, slash, bottom = text.partition("/")
        number = float(top) / float(bottom) if slash else float(text)
        return number if isfinite(number) else _refuse(text)
    return _refuse(text)


def _refuse(text: str) -> Any:
    raise ValueError(text)
