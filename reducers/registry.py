"""From a spec string to a reducer: `name` or `name(key=value, ...)`."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from reducers.base import Reducer, ReducerError, ReducerSpecError
from reducers.dycoke import DyCoke, DyCokeConfig
from reducers.evs import Evs, EvsConfig
from reducers.fastvid import FastVid, FastVidConfig
from reducers.flashvid import FlashVid, FlashVidConfig
from reducers.grids import Sequential, SequentialConfig, Spatial, SpatialConfig
from reducers.hired import HiRed, HiRedConfig
from reducers.holitom import HoliTom, HoliTomConfig
from reducers.nest import Nest
from reducers.nest_order import NestConfig
from reducers.none import NoneConfig, NoReduction
from reducers.prumerge import PruMerge, PruMergeConfig, PruMergePlus
from reducers.tome import ToMe, ToMeConfig
from reducers.trim import Trim, TrimConfig
from reducers.unicomp import UniComp, UniCompConfig
from reducers.vcast import VCast, VCastConfig
from reducers.visionzip import VisionZip, VisionZipConfig

METHODS: Mapping[str, tuple[type[Any], Callable[[Any], Reducer]]] = {
    "none": (NoneConfig, NoReduction),
    "sequential": (SequentialConfig, Sequential),
    "spatial": (SpatialConfig, Spatial),
    "prumerge": (PruMergeConfig, PruMerge),
    "prumerge+": (PruMergeConfig, PruMergePlus),
    "visionzip": (VisionZipConfig, VisionZip),
    "hired": (HiRedConfig, HiRed),
    "trim": (TrimConfig, Trim),
    "tome": (ToMeConfig, ToMe),
    "evs": (EvsConfig, Evs),
    "dycoke_ttm": (DyCokeConfig, DyCoke),
    "fastvid": (FastVidConfig, FastVid),
    "holitom": (HoliTomConfig, HoliTom),
    "flashvid": (FlashVidConfig, FlashVid),
    "unicomp": (UniCompConfig, UniComp),
    "vcast": (VCastConfig, VCast),
    "nest": (NestConfig, Nest),
}
"""Name to config class and reducer class. Any: each method has its own config."""

SPEC = re.compile(r"\s*([A-Za-z_][\w+]*)\s*(?:\((.*)\))?\s*", re.DOTALL)


def names() -> tuple[str, ...]:
    """Return the names of all reducers."""
    return tuple(METHODS)


def parse(spec: str) -> Reducer:
    """Return the reducer of a spec such as `prumerge+(ratio=1/8)`. Raises ReducerSpecError, in one line."""
    found = SPEC.fullmatch(spec)
    if found is None:
        raise ReducerSpecError(f"expected a reducer such as prumerge+(ratio=0.125), got {spec!r}")
    name, listed = found.group(1), found.group(2) or ""
    if name not in METHODS:
        raise ReducerSpecError(f"unknown reducer {name!r}, expected one of {', '.join(METHODS)}")
    config, build = METHODS[name]
    try:
        return build(config(**_arguments(name, listed, config)))
    except ReducerSpecError:
        raise
    except ReducerError as error:
        raise ReducerSpecError(f"{name}: {error}") from error


def parameters(name: str) -> dict[str, tuple[str, Any]]:
    """Return type and default of each parameter of a reducer."""
    config, _ = METHODS[name]
    hints = get_type_hints(config)
    return {field.name: (_type_name(hints[field.name]), field.default) for field in dataclasses.fields(config)}


def _arguments(name: str, listed: str, config: type[Any]) -> dict[str, Any]:
    """Parse `key=value, key=value` by the types of a config's fields."""
    hints = get_type_hints(config)
    arguments: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in listed.split(","))):
        key, equals, text = (piece.strip() for piece in part.partition("="))
        if not equals or key not in hints:
            raise ReducerSpecError(f"{name}: unknown parameter {part!r}, expected some of {', '.join(hints)}")
        if key in arguments:
            raise ReducerSpecError(f"{name}: parameter {key!r} is given twice")
        try:
            arguments[key] = _value(text, hints[key])
        except (ValueError, ZeroDivisionError) as error:
            raise ReducerSpecError(f"{name}: expected {key} to be {_type_name(hints[key])}, got {text!r}") from error
    return arguments


def _value(text: str, kind: Any) -> Any:
    """Parse one value. Any: the kinds are type hints, the values theirs. Raises ValueError."""
    if get_origin(kind) is Literal:
        if text.strip("'\"") in get_args(kind):
            return text.strip("'\"")
        raise ValueError(text)
    options = get_args(kind) or (kind,)
    if type(None) in options and text.lower() == "none":
        return None
    if bool in options:
        return {"true": True, "false": False}[text.lower()] if text.lower() in ("true", "false") else _refuse(text)
    if int in options:
        return int(text)
    if float in options:
        top, slash, bottom = text.partition("/")
        return float(top) / float(bottom) if slash else float(text)
    return _refuse(text)


def _refuse(text: str) -> Any:
    raise ValueError(text)


def _type_name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    options = [option for option in (get_args(kind) or (kind,)) if option is not type(None)]
    return "|".join(option.__name__ for option in options)
