"""Parameter sets of a stream: those in use, and whether a decoder that begins at a packet would have the same."""

from pipeline.decode.bitstream.picture import DamagedBitstreamError

Key = tuple[str, int]
"""Kind and id of a set."""


class ParameterSets:
    """The parameter sets in use, by kind and id."""

    def __init__(self) -> None:
        self.live: dict[Key, bytes] = {}
        self.changed: set[Key] = set()
        """Sets with more than one content so far, or that came after the first packet: a decoder need not have them."""
        self.here: set[Key] = set()
        self.packets = 0

    def before_first(self, key: Key, unit: bytes) -> None:
        """Take a set of the container's header, which every decoder is given."""
        self.live[key] = unit

    def begin_packet(self) -> None:
        """Note that a new packet begins."""
        self.here = set()
        self.packets += 1

    def add(self, key: Key, unit: bytes) -> None:
        """Take a set that the packet at hand carries."""
        if self.live.get(key) != unit:
            if key in self.live or self.packets > 1:
                self.changed.add(key)
            self.live[key] = unit
        self.here.add(key)

    def complete_from_here(self) -> bool:
        """Tell whether a decoder that begins at the packet at hand has all sets in use."""
        return self.changed <= self.here

    def get(self, key: Key) -> bytes:
        """Return a set. Raises DamagedBitstreamError where there is none."""
        unit = self.live.get(key)
        if unit is None:
            raise DamagedBitstreamError(f"no {key[0].upper()} {key[1]}")
        return unit
