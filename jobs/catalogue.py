"""What there is to say about every reducer, read from the code itself: docs/reducers.md is made of it."""

import ast
import inspect
import textwrap
from itertools import pairwise
from typing import Any

from reducers.base import Reducer
from reducers.registry import METHODS, parameters

INTRODUCTION = """# Reducers

Made by `framefold reducers --markdown True` from the code; a test holds it equal. A spec names one with parameters, for example
`prumerge+(ratio=0.125)`; all of them are in the fingerprint. N is the number of patches of a frame, 256 in the real model.

Every reducer is pure torch over `[frames, patches, width]`, scores in float32, breaks ties by the lower index, and gives a clip
the same tokens alone or in a batch; `tests/reducers/test_invariants.py` holds all of them to it.
"""


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
    return "\n".join([INTRODUCTION, *(_section(name) for name in METHODS)])


def _section(name: str) -> str:
    about = entry(name)
    place = "inside the tower" if about["modifies_tower"] else "after the tower"
    when = "when a question is asked" if about["needs_text"] else place
    needs = "; ".join(about["needs"]) or "nothing beyond features"
    rows = [
        f"| `{key}` | {told['type'].replace('|', ', ')} | {told['default']} | {told['about'].replace('|', ',')} |"
        for key, told in about["parameters"].items()
    ]
    table = ["| parameter | type | default | meaning |", "|---|---|---|---|", *rows, ""] if rows else []
    lines = [f"## `{name}`", "", about["summary"], "", f"Runs {when}. Reads {needs}.", "", *table]
    return "\n".join([*lines, *(f"- {note}" for note in about["notes"]), ""])


def _docstring(build: Any) -> tuple[str, list[str]]:
    """Return the summary and the `Source:` and `Departs:` paragraphs. Any: reducer classes have no common base."""
    text = inspect.cleandoc(build.__doc__ or "")
    summary, _, rest = text.partition("\n\n")
    notes: list[str] = []
    for line in rest.splitlines():
        if line.startswith(("Source:", "Departs:")):
            notes.append(line.strip())
        elif notes and line.strip():
            notes[-1] += f" {line.strip()}"
    return " ".join(summary.split()), notes


def _field_docs(config: type[Any]) -> dict[str, str]:
    """Return the docstring under each field of a config class, which Python itself does not keep."""
    body = ast.parse(textwrap.dedent(inspect.getsource(config))).body[0]
    found = {}
    nodes = body.body if isinstance(body, ast.ClassDef) else []
    for node, after in pairwise(nodes):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(after, ast.Expr):
            found[node.target.id] = " ".join(str(ast.literal_eval(after.value)).split())
    return found
