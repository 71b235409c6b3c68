"""What there is to say about every reducer, read from the code itself: docs/reducers.md is made of it."""

import ast
import inspect
import re
import sys
import textwrap
from itertools import pairwise
from typing import Any

from jobs.docs_gen.catalogue_text import ABOUT, COMPOSITIONS, INTRODUCTION
from jobs.docs_gen.pictures import PICTURED, file_name
from reducers.base import Reducer
from reducers.compose.selectors import FIRST
from reducers.compose.spenders import SECOND
from reducers.registry import METHODS, parameters, parameters_of


def entry(name: str) -> dict[str, Any]:
    """Return summary, source, departures, needs and parameters of a reducer."""
    config, build = METHODS[name]
    reducer: Reducer = build(config())
    summary, notes = _docstring(build)
    told = _field_docs(config)
    return {
        "summary": summary,
        "notes": notes,
        "version": reducer.version,
        "needs_text": reducer.needs_text,
        "modifies_tower": reducer.modifies_tower,
        "needs": sorted(f"{need.kind} of block {need.block}, heads {need.heads}" for need in reducer.needs),
        "parameters": {
            key: {"type": kind, "default": default, "about": told.get(key, "")}
            for key, (kind, default) in parameters(name).items()
        },
    }


def markdown() -> str:
    """Return docs/reducers.md."""
    firsts = [_part("first", name, known.about, known.config) for name, known in FIRST.items()]
    seconds = [_part("second", name, known.about, known.config) for name, known in SECOND.items()]
    return "\n".join([INTRODUCTION, *(_section(name) for name in METHODS), COMPOSITIONS, *firsts, *seconds])


def _section(name: str) -> str:
    about, more = entry(name), ABOUT[name]
    place = "inside the tower" if about["modifies_tower"] else "after the tower"
    when = "when a question is asked, not while encoding" if about["needs_text"] else f"{place}, without the question"
    facts = [
        f"- Runs {when}.",
        f"- Needs: {'; '.join(about['needs']) or 'nothing beyond features'}.",
        f"- Budget: {more.budget}",
        f"- Cost: {more.cost}",
        *(f"- {note}" for note in about["notes"]),
    ]
    lines = [f"## `{name}`", "", f"{about['summary']} {more.how}", "", *_image(name), *facts, ""]
    return "\n".join([*lines, *_table(about["parameters"])])


def _part(place: str, name: str, about: str, config: type[Any]) -> str:
    """Return the section of a part of a composition. Any: each has its own config."""
    told = _field_docs(config)
    fields = {
        key: {"type": kind, "default": default, "about": told.get(key, "")}
        for key, (kind, default) in parameters_of(config).items()
    }
    picture = _image(name if name not in METHODS else f"{name} as a first part") if place == "first" else []
    return "\n".join([f"## `{name}` as the {place} part", "", about, "", *picture, *_table(fields)])


def _image(section: str) -> list[str]:
    """Return the picture of a section, nothing if there is none."""
    spec = PICTURED.get(section)
    return [] if spec is None else [f"![{spec}](pictures/{file_name(spec)})", "", f"`{spec}`", ""]


def _table(parameters: dict[str, dict[str, Any]]) -> list[str]:
    """Return rows of a table of parameters. Any: defaults are of all types."""
    rows = [
        f"| `{key}` | {told['type'].replace('|', ', ')} | {told['default']} | {told['about'].replace('|', ',')} |"
        for key, told in parameters.items()
    ]
    return ["| parameter | type | default | meaning |", "|---|---|---|---|", *rows, ""] if rows else []


def _docstring(build: Any) -> tuple[str, list[str]]:
    """Return the summary and the `Source:` and `Departs:` paragraphs, of a function too where a class refers to it.

    Any: reducer classes have no common base.
    """
    summary, _, rest = inspect.cleandoc(build.__doc__ or "").partition("\n\n")
    notes = _notes(rest)
    referred = re.match(r"Source(?: and departures)?: as `(\w+)`\.\s*", notes[0]) if notes else None
    method = getattr(sys.modules[build.__module__], referred.group(1), None) if referred else None
    if referred and method is not None:
        left = notes[0][referred.end() :].strip()
        notes = [*_notes(inspect.cleandoc(method.__doc__ or "")), *([left] if left else []), *notes[1:]]
    return " ".join(summary.split()), notes


def _notes(text: str) -> list[str]:
    notes: list[str] = []
    for line in text.splitlines():
        if line.startswith(("Source", "Departs:")):
            notes.append(line.strip())
        elif notes and line.strip():
            notes[-1] += f" {line.strip()}"
    return notes


def _field_docs(config: type[Any]) -> dict[str, str]:
    """Return the docstring under each field of a config class and its bases, which Python itself does not keep."""
    found: dict[str, str] = {}
    for base in reversed(config.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        for node, after in pairwise(body.body if isinstance(body, ast.ClassDef) else []):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(after, ast.Expr):
                found[node.target.id] = " ".join(str(ast.literal_eval(after.value)).split())
    return found
