"""Parts of the tables that `--dry-run` prints."""

from collections.abc import Mapping
from typing import Any

UNITS = ("B", "kB", "MB", "GB", "TB")
BASES = {
    "exact": "exact",
    "estimate": "estimate: mean of the committed entries",
    "upper_bound": "upper bound: the number depends on the content of a video",
}
"""What the `basis` of an expected number means."""


def by_class(counts: Mapping[str, int], note: str = "") -> str:
    """Return counts by class of failure as text: `3 (CORRUPT 2, TIMEOUT 1)`, `0` where there are none."""
    classes = ", ".join(f"{name} {count}" for name, count in counts.items())
    return f"{sum(counts.values())} ({classes}){note}" if counts else "0"


def size(count: float) -> str:
    """Return a number of bytes with a unit of powers of 1000."""
    power = 0
    while count >= 1000 and power < len(UNITS) - 1:
        count, power = count / 1000, power + 1
    return f"{count:.4g} {UNITS[power]}"


def basis(expected: Mapping[str, Any]) -> str:
    """Return where an expected number comes from, as text."""
    return BASES[expected["basis"]]
