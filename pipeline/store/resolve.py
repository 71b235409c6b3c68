"""Which video of a store a person means: by its id, the path or URL it was encoded from, or the name of its file."""

import os
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.corpus.segments import file_of, span_of
from pipeline.errors import ConfigError
from pipeline.names import bounded, escape, local_names, one_line, unquoted
from pipeline.redaction import redact
from pipeline.store.index import Index

SHOWN = 3
SEARCHED = 100_000
"""Among more ids the closest are not looked for: that would take seconds."""

Row = Mapping[str, Any]
"""A row of `schema.INDEX`."""
READ = ("video_id", "uri", "status", "error_class", "error")


def find_video(asked: str, index: Index) -> Row:
    """Return the row of the one video that is meant: by its id, else by its path, else by the name of its file.

    What is committed comes before what failed. Raises ConfigError where none or several are meant; it names those, or the
    closest.
    """
    if (known := index.get(asked) or index.get(bounded(escape(asked)))) is not None:
        return known
    rows = index.rows.select(READ).to_pylist()
    for wanted, names_of in (*((place, _places) for place in _paths(asked)), (asked, _names)):
        meant = [row for row in rows if wanted in names_of(row)]
        found = [row for row in meant if row["status"] == "committed"] or meant
        if len(found) == 1:
            return found[0]
        if found:
            matches = _some([row["video_id"] for row in found])
            raise ConfigError(f"ambiguous video {one_line(asked)}: matches {matches}; pass a full id")
    ids = [row["video_id"] for row in rows]
    close = get_close_matches(_stem(asked), ids, SHOWN) if len(ids) <= SEARCHED else []
    such = f", such as {_some(ids)}" if ids else ""
    hint = f"; the closest: {_some(close)}" if close else f"{such}: encode it first"
    raise ConfigError(f"{one_line(asked)} is not in the store, which has {len(ids)} videos{hint}")


def _places(row: Row) -> set[str]:
    """Return the paths or URLs of a video, those of its whole file among them."""
    return {next(_paths(row["uri"])), next(_paths(file_of(row["uri"])))}


def _names(row: Row) -> set[str]:
    """Return the last part of the id, and the file's name with and without its ending; of a segment with its times too."""
    name = PurePosixPath(next(_paths(file_of(row["uri"])))).name
    span = row["uri"][len(span_of(row["uri"])[0]) :]
    plain = {name, _stem(name), name + span, _stem(name) + span}
    return {PurePosixPath(row["video_id"]).name, *plain, *map(escape, plain)}


def _paths(name: str) -> Iterator[str]:
    """Yield the absolute paths that a name on local disk may mean, the literal one first; any other URL as it is stored."""
    paths = [str(Path(os.path.normpath(Path(path).absolute()))) for path in local_names(name)]
    yield from paths or dict.fromkeys((redact(name), redact(unquoted(name))))


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix("")) if PurePosixPath(name).suffix else name


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
