"""From a spec string to a reducer: `name`, `name(key=value, ...)`, or two parts joined as in `evs(keep=256)|visionzip`."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from reducers import plugins
from reducers.base import Reducer, ReducerError, ReducerSpecError
from reducers.compose.composition import Composed, CompositionConfig, Part
from reducers.compose.selectors import FIRST
from reducers.compose.spenders import SECOND
from reducers.methods.dycoke import DyCoke, DyCokeConfig
from reducers.methods.evs import Evs, EvsConfig
from reducers.methods.fastvid import FastVid, FastVidConfig
from reducers.methods.flashvid import FlashVid, FlashVidConfig
from reducers.methods.grids import Sequential, SequentialConfig, Spatial, SpatialConfig
from reducers.methods.hired import HiRed, HiRedConfig
from reducers.methods.holitom import HoliTom, HoliTomConfig
from reducers.methods.none import NoneConfig, NoReduction
from reducers.methods.prumerge import PruMerge, PruMergeConfig, PruMergePlus
from reducers.methods.tome import ToMe, ToMeConfig
from reducers.methods.trim import Trim, TrimConfig
from reducers.methods.unicomp import UniComp, UniCompConfig
from reducers.methods.vcast import VCast, VCastConfig
from reducers.methods.visionzip import VisionZip, VisionZipConfig
from reducers.nest.order import NestConfig
from reducers.nest.reducer import Nest
from reducers.plugins import register as register
from reducers.spec import Term, arguments, terms, type_name

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

plugins.reserve(*METHODS, *FIRST, *SECOND)

PROPORTION = {"dominant", "contextual"}
"""Parameters that need a budget beside them in a composition."""


def names() -> tuple[str, ...]:
    """Return the names of our own reducers; `plugins.names` has those of other distributions."""
    return tuple(METHODS)


def parse(spec: str) -> Reducer:
    """Return the reducer of a spec such as `prumerge+(ratio=1/8)` or `alloc(vcast)+prumerge+`, or of a plug-in's name.

    Raises ReducerSpecError, in one line.
    """
    found = terms(spec)
    return _single(found[0]) if len(found) == 1 else _composed(found)


def parameters(name: str) -> dict[str, tuple[str, Any]]:
    """Return type and default of each parameter of a reducer, ours or a plug-in. Raises KeyError, PluginError."""
    known = METHODS.get(name) or plugins.find(name)
    if known is None:
        raise KeyError(name)
    return parameters_of(known[0])


def parameters_of(config: type[Any]) -> dict[str, tuple[str, Any]]:
    """Return type and default of each field of a config. Any: each method has its own."""
    hints = get_type_hints(config)
    return {field.name: (type_name(hints[field.name]), field.default) for field in dataclasses.fields(config)}


def _single(term: Term) -> Reducer:
    known = METHODS.get(term.name) or plugins.find(term.name)
    if known is None:
        firsts = f"; {term.name} stands before another, as in {term.name}+visionzip" if term.name in FIRST else ""
        listed = ", ".join([*METHODS, *plugins.names()])
        raise ReducerSpecError(f"unknown reducer {term.name!r}, expected one of {listed}{firsts}")
    config, build = known
    return build(_config(term, config))


def _config(term: Term, config: type[Any]) -> Any:
    """Return the config of a term. Any: each method has its own. Raises ReducerSpecError."""
    try:
        return config(**arguments(term, config))
    except ReducerSpecError:
        raise
    except ReducerError as error:
        raise ReducerSpecError(f"{term.name}: {error}") from error


def _composed(found: list[Term]) -> Reducer:
    """Return the composition of two terms. Raises ReducerSpecError for parts that do not fit."""
    _check_parts(found)
    first, second = found
    _check_budget(first, second)
    try:
        parts = [
            Part(name=term.name, version=known.version, params=_config(term, known.config))
            for term, known in ((first, FIRST[first.name]), (second, SECOND[second.name]))
        ]
        return Composed(CompositionConfig(first=parts[0], second=parts[1]))
    except ReducerSpecError:
        raise
    except ReducerError as error:
        raise ReducerSpecError(f"{first.name}|{second.name}: {error}") from error


def _check_parts(found: list[Term]) -> None:
    """Raise ReducerSpecError unless a first part is followed by a second."""
    for term in found:
        if term.name not in {*METHODS, *FIRST, *SECOND}:
            known = f"{', '.join(FIRST)} and then {', '.join(SECOND)}"
            raise ReducerSpecError(f"unknown part {term.name!r} of a composition, expected {known}")
        method = METHODS.get(term.name, (None, None))[1]
        if getattr(method, "needs_text", False):
            raise ReducerSpecError(f"{term.name} reads the question and cannot be part of what is stored before one is asked")
        if getattr(method, "modifies_tower", False):
            raise ReducerSpecError(f"{term.name} works inside the tower and cannot be part of a composition behind it")
    if len(found) != 2 or found[0].name not in FIRST or found[1].name not in SECOND:
        got = "|".join(term.name for term in found)
        raise ReducerSpecError(f"expected one of {', '.join(FIRST)}, then one of {', '.join(SECOND)}, got {got}")


def _check_budget(first: Term, second: Term) -> None:
    """Raise ReducerSpecError where a second part states a budget, or what only makes sense beside one of its own."""
    alone, here = get_type_hints(METHODS[second.name][0]).keys(), get_type_hints(SECOND[second.name].config).keys()
    asked, given = ({piece.partition("=")[0].strip() for piece in term.arguments.split(",")} for term in (second, first))
    if misplaced := sorted(asked & (alone - here)):
        raise ReducerSpecError(
            f"{second.name}: {misplaced[0]} is not allowed in a composition: set budget and CLS rows in the first part, "
            f"e.g. {first.name}(ratio=0.25), and {second.name} takes {', '.join(here) or 'no parameter'}"
        )
    if asked & PROPORTION and not given & {"keep", "ratio"}:
        raise ReducerSpecError(
            f"{second.name}: dominant and contextual are only a proportion in a composition: "
            f"set the budget in the first part, e.g. {first.name}(keep=256)"
        )
