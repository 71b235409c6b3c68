"""Which of the names that a store knows a name in a file means: with or without suffix, folders and spaces."""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import PurePosixPath

from pipeline.corpus.listing import VIDEO_SUFFIXES
from pipeline.tables.values import shown

logger = logging.getLogger(__name__)

Candidates = Callable[[str], Sequence[str]]
"""From one spelling of a name to the ids that a video of that name may have."""


def without_suffix(name: str) -> str:
    """Return a name without the suffix of a video file, where it has one."""
    suffix = PurePosixPath(name).suffix
    return name[: -len(suffix)] if suffix.lower() in VIDEO_SUFFIXES else name


def known_names(names: Collection[str], known: Collection[str], candidates: Candidates) -> dict[str, str | None]:
    """Return the known id of each name, None where there is none, or where only parts of several paths would fit one."""
    found = {name: _first(_spellings(name), known, candidates) for name in names}
    ends = {name: _first(_ends(name), known, candidates) for name, one in found.items() if one is None}
    uses = Counter([*found.values(), *ends.values()])
    doubtful = [name for name, one in ends.items() if one is not None and uses[one] > 1]
    if doubtful:
        logger.warning("%d videos fit an id that others fit too, such as %s; see --aliases", len(doubtful), shown(doubtful[0]))
    return {**found, **ends, **dict.fromkeys(doubtful)}


def _first(spellings: Sequence[str], known: Collection[str], candidates: Candidates) -> str | None:
    return next((one for spelling in spellings for one in candidates(spelling) if one in known), None)


def _spellings(name: str) -> list[str]:
    return list(dict.fromkeys([name, name.strip(), without_suffix(name.strip())]))


def _ends(name: str) -> list[str]:
    """Return the ends of the path of a video file, the longest first, each with its suffix and without."""
    path = name.strip().replace("\\", "/")
    if without_suffix(path) == path:
        return []
    parts = path.split("/")
    return [one for first in range(1, len(parts)) for end in ["/".join(parts[first:])] for one in (end, without_suffix(end))]
