"""Find modules that shadow ours: `pipeline`, `reducers` and `jobs` are common names for a file of a user's own.

This module imports nothing of Framefold, so that it works where one of those names leads elsewhere.
"""

from importlib.util import find_spec
from pathlib import Path

OURS = ("pipeline", "reducers", "jobs")
"""Top-level packages that are installed beside `framefold`."""
HOME = Path(__file__).resolve().parents[1]
"""The folder that holds `framefold` and the packages of `OURS`."""


def check_no_shadows() -> None:
    """Raise ImportError, in one sentence, if one of our package names leads to a file or folder that is not ours."""
    for name in OURS:
        foreign = foreign_file(name)
        if foreign is not None:
            raise ImportError(
                f"{foreign} shadows the package {name!r} of framefold: rename it, or start Python in another directory",
                name=name,
                path=foreign,
            )


def foreign_file(name: str) -> str | None:
    """Return the file or folder that `import NAME` would load, or has loaded, instead of ours; None if it is ours or absent."""
    found = _location(name)
    return None if found is None or Path(found).resolve().is_relative_to(HOME / name) else found


def _location(name: str) -> str | None:
    """Return where a module lies, loaded or not: its file, or the first folder of a namespace package."""
    try:
        spec = find_spec(name)
    except ValueError:  # a module in sys.modules that was made by hand lies nowhere
        return None
    return None if spec is None else spec.origin or next(iter(spec.submodule_search_locations or []), None)
