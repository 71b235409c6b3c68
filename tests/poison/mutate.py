"""Mutated video files, seeded: the same seed makes the same files. A mutant is real bytes of a real video, damaged."""

import random
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

VIDEOS = Path(__file__).parents[1] / "videos"
CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"udta", b"dinf", b"mvex", b"moof", b"traf", b"meta")
"""Boxes of ISO base media files that hold boxes."""
HEADER_BYTES = 4096
EDGES = (0, 1, 7, 8, 9, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
"""Numbers at which parsers go wrong."""


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One damaged file."""

    name: str
    kind: str
    content: bytes


@dataclass(frozen=True, kw_only=True)
class Box:
    """One box: its header begins at `start`, its content at `body`, it ends at `end`."""

    start: int
    body: int
    end: int
    kind: bytes


def seeds(*folders: Path) -> dict[str, bytes]:
    """Return the files to damage, by name; licence texts are none."""
    found = {path.name: path for folder in folders for path in sorted(folder.iterdir())}
    return {name: path.read_bytes() for name, path in sorted(found.items()) if path.suffix not in (".txt", ".md")}


def mutants(originals: Mapping[str, bytes], count: int, seed: int = 0) -> Iterator[Mutant]:
    """Yield damaged files, each kind of damage on each file in turn."""
    names, kinds = list(originals), list(KINDS)
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        name, kind = names[number % len(names)], kinds[number // len(names) % len(kinds)]
        content = KINDS[kind](rng, originals[name], originals[rng.choice(names)])
        yield Mutant(name=f"{number:05d}-{kind}-{name}", kind=kind, content=content)


def truncated(rng: random.Random, content: bytes, _: bytes) -> bytes:
    """The file ends early: anywhere, or within its header."""
    return content[: rng.randrange(1, rng.choice((len(content), min(len(content), HEADER_BYTES))))]


def flipped(rng: random.Random, content: bytes, _: bytes) -> bytes:
    """A few to many bits are other ones, anywhere."""
    damaged = bytearray(content)
    for _flip in range(rng.choice((1, 4, 16, 64, 256, 1024))):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def header_fuzzed(rng: random.Random, content: bytes, _: bytes) -> bytes:
    """Bytes near the beginning, where containers keep their numbers, take edge values."""
    damaged = bytearray(content)
    for _change in range(rng.randrange(1, 12)):
        _set_number(rng, damaged, rng.randrange(4, min(len(damaged), HEADER_BYTES)))
    return bytes(damaged)


def box_fuzzed(rng: random.Random, content: bytes, _: bytes) -> bytes:
    """Sizes, kinds and contents of boxes change; a file without boxes has its last bytes fuzzed, where an index may be."""
    damaged, found = bytearray(content), boxes(content)
    if not found:
        for _change in range(rng.randrange(1, 12)):
            _set_number(rng, damaged, len(damaged) - rng.randrange(8, min(len(damaged), HEADER_BYTES)))
        return bytes(damaged)
    for _change in range(rng.randrange(1, 4)):
        box = rng.choice(found)
        how = rng.randrange(4)
        if how == 0:
            size = rng.choice((*EDGES, max(0, box.end - box.start + rng.randrange(-9, 9))))
            damaged[box.start : box.start + 4] = struct.pack(">I", size)
        elif how == 1:
            damaged[box.start + 4 : box.start + 8] = rng.choice(found).kind
        elif box.end - box.body >= 4:
            _set_number(rng, damaged, box.body + rng.randrange(0, min(box.end - box.body, 64)))
    return bytes(damaged)


def spliced(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """A box takes the place of another, or stands twice, or a stretch of another file takes the place of one."""
    ours, theirs = boxes(content), boxes(other)
    if ours and theirs:
        place, donor = rng.choice(ours), rng.choice(theirs)
        stop = rng.choice((place.start, place.end))
        return content[: place.start] + other[donor.start : donor.end] + content[stop:]
    at, length = rng.randrange(len(content)), rng.randrange(1, HEADER_BYTES * 4)
    donor_at = rng.randrange(len(other))
    return content[:at] + other[donor_at : donor_at + length] + content[at + rng.choice((0, length)) :]


def zeroed(rng: random.Random, content: bytes, _: bytes) -> bytes:
    """A run of zeros, as after a crash of a file system; now and then of 0xFF."""
    at = rng.randrange(rng.choice((len(content), min(len(content), HEADER_BYTES))))
    length = min(rng.choice((16, 512, 4096, 65536, len(content))), len(content) - at)
    return content[:at] + rng.choice((b"\x00", b"\x00", b"\xff")) * length + content[at + length :]


KINDS: dict[str, Callable[[random.Random, bytes, bytes], bytes]] = {
    "truncated": truncated,
    "flipped": flipped,
    "header": header_fuzzed,
    "boxes": box_fuzzed,
    "spliced": spliced,
    "zeroed": zeroed,
}


def boxes(content: bytes) -> list[Box]:
    """Return every box of an ISO base media file, outer before inner; none for other files."""
    return list(_boxes(content, 0, len(content))) if content[4:8] in (b"ftyp", b"moov", b"wide", b"mdat") else []


def _boxes(content: bytes, at: int, end: int) -> Iterator[Box]:
    while at + 8 <= end:
        size, kind = struct.unpack_from(">I4s", content, at)
        body = at + 8
        if size == 1 and at + 16 <= end:
            size, body = struct.unpack_from(">Q", content, at + 8)[0], at + 16
        stop = end if size == 0 else at + size
        if stop > end or stop < body:
            return
        yield Box(start=at, body=body, end=stop, kind=kind)
        if kind in CONTAINERS:
            yield from _boxes(content, body, stop)
        at = stop


def _set_number(rng: random.Random, damaged: bytearray, at: int) -> None:
    """Put a number of one to eight bytes at a place, big or little end first."""
    width, order = rng.choice((1, 2, 4, 8)), rng.choice(("big", "little"))
    value = rng.choice((rng.choice(EDGES), rng.getrandbits(8 * width)))
    damaged[at : at + width] = (value & ((1 << 8 * width) - 1)).to_bytes(width, order)[: max(0, len(damaged) - at)]
