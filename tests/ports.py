"""Ports for servers that cannot be told to take any free one."""

import contextlib
import random
import socket
from pathlib import Path

LOWEST = 20_000
"""Below it are Ray's workers and well-known servers."""


def free_ports(count: int) -> list[int]:
    """Return so many ports of 127.0.0.1 that nobody holds, drawn from those that the kernel gives to no one by itself.

    A port from the kernel's own range may be that of somebody's outgoing connection by the time a server binds it.
    """
    draw, found = random.SystemRandom(), set[int]()
    for _ in range(1000 * count):
        if len(found) == count:
            return sorted(found)
        port = draw.randrange(LOWEST, _first_of_the_kernel())
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("", port))
            found.add(port)
    raise RuntimeError(f"no {count} free ports from {LOWEST} to {_first_of_the_kernel()}")


def _first_of_the_kernel() -> int:
    """Return the first port of those for outgoing connections; Linux's default where it does not say."""
    said = Path("/proc/sys/net/ipv4/ip_local_port_range")
    first = int(said.read_text().split()[0]) if said.is_file() else 32_768
    return first if first > LOWEST + 1000 else 32_768
