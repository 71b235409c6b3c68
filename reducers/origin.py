"""Which distribution a reducer class comes from: part of the fingerprint of what a plug-in makes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Distribution:
    """An installed distribution, as its metadata names it."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


_origins: dict[type, Distribution] = {}


def note_origin(kind: type, distribution: Distribution) -> None:
    """Remember which distribution a reducer class was loaded from."""
    _origins[kind] = distribution


def origin_of(kind: type) -> Distribution | None:
    """Return the distribution of a reducer class; None for our own, and for one that was registered in this process."""
    return _origins.get(kind)
