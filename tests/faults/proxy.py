"""A proxy that spoils a share of the requests to an HTTP server: SlowDown, resets, short bodies, silence.

Bytes and the Host header pass through untouched, so signatures stay valid. What it does is drawn from a seed and counted.
"""

import asyncio
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from random import Random
from types import TracebackType

FAULTS = ("slow_down", "reset", "truncate", "stall", "lost_answer")
"""503 SlowDown; a reset before the request is sent on; half a body, then the end; silence, then a reset; a reset in place of
the answer, when the server has done the work."""
SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
ENDED = (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError)


@dataclass(frozen=True)
class Answer:
    """The head of an answer and whether a body follows."""

    head: bytes
    has_body: bool


class FaultProxy:
    """Listens on a free port of 127.0.0.1 in a thread of its own, while in a `with` statement."""

    def __init__(
        self, upstream: int, shares: Mapping[str, float], *, seed: int = 0, stall_s: float = 3.0, only: str = ""
    ) -> None:
        """`only`: a pattern; requests whose line, as in `PUT /bucket/key?query`, it does not match are left alone."""
        assert set(shares) <= set(FAULTS), f"expected faults of {FAULTS}, got {sorted(shares)}"
        self.upstream, self.shares, self.stall_s, self.only = upstream, dict(shares), stall_s, only
        self.random = Random(seed)
        self.counts: Counter[str] = Counter()
        """How many requests came, and how many of them were spoiled in which way."""
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "FaultProxy":
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    @property
    def spoiled(self) -> int:
        """Return how many requests were spoiled."""
        return sum(self.counts[name] for name in FAULTS)

    def heal(self) -> None:
        """Let every request through from now on."""
        self.shares = {}

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self._loop.run_until_complete(asyncio.sleep(0.05))  # what they closed is told so
        self._loop.close()

    def _fate(self, line: str) -> str | None:
        """Return what becomes of a request, by a draw."""
        self.counts["requests"] += 1
        draw = self.random.random()
        if not re.search(self.only, line):
            return None
        for name, share in self.shares.items():
            if draw < share:
                self.counts[name] += 1
                return name
            draw -= share
        return None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except ENDED:
            pass
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Pass one request on, or spoil it. Returns whether the connection lives on."""
        head = await reader.readuntil(b"\r\n\r\n")
        line = head.split(b"\r\n")[0].decode("latin1")
        fate = self._fate(line)
        if fate == "stall":
            await asyncio.sleep(self.stall_s)
        if fate in ("reset", "stall"):
            return _reset(writer)
        if fate == "slow_down":
            return await _slow_down(reader, writer, head)
        return await self._pass(reader, writer, head, fate)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes, fate: str | None) -> bool:
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.upstream, limit=1 << 20)
        sending = asyncio.create_task(_send(reader, up_writer, head))
        try:
            answer = await _answer(up_reader, writer, head)
            if fate == "lost_answer":
                return _reset(writer)
            writer.write(answer.head)
            wanted = _length(answer.head)
            sent = 0
            async for part in _body(up_reader, answer.head if answer.has_body else b""):
                if fate == "truncate" and sent + len(part) > wanted // 2:
                    writer.write(part[: max(0, wanted // 2 - sent)])
                    await writer.drain()
                    return False
                writer.write(part)
                await writer.drain()
                sent += len(part)
            if fate == "truncate":
                return False
            return sending.done()
        finally:
            sending.cancel()
            up_writer.close()


async def _send(reader: asyncio.StreamReader, up: asyncio.StreamWriter, head: bytes) -> None:
    up.write(head)
    async for part in _body(reader, head):
        up.write(part)
        await up.drain()


async def _answer(up: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> Answer:
    """Return the head of the answer; `100 Continue` is passed on at once."""
    while (head := await up.readuntil(b"\r\n\r\n"))[9:10] == b"1":
        writer.write(head)
    return Answer(head, not request.startswith(b"HEAD ") and head[9:12] not in (b"204", b"304"))


async def _slow_down(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> bool:
    if not _header(head, b"expect"):
        async for _ in _body(reader, head):
            pass
    body = b"" if head.startswith(b"HEAD ") else SLOW_DOWN
    writer.write(b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\nContent-Length: ")
    writer.write(b"%d\r\n\r\n" % len(body) + body)
    await writer.drain()
    return False


async def _body(reader: asyncio.StreamReader, head: bytes) -> AsyncIterator[bytes]:
    """Yield the body that a head announces, framed as on the wire."""
    if _header(head, b"transfer-encoding").lower() == b"chunked":
        size = 1
        while size:
            line = await reader.readuntil(b"\n")
            size = int(line.split(b";")[0], 16)
            yield line + (await reader.readexactly(size + 2) if size else b"")
        while line != b"\r\n":
            line = await reader.readuntil(b"\n")
            yield line
        return
    left = _length(head)
    while left:
        part = await reader.read(min(left, 1 << 16))
        if not part:
            raise asyncio.IncompleteReadError(b"", left)
        left -= len(part)
        yield part


def _header(head: bytes, name: bytes) -> bytes:
    found = re.search(rb"(?im)^" + name + rb":[ \t]*(.*?)\r$", head)
    return found.group(1) if found else b""


def _length(head: bytes) -> int:
    return int(_header(head, b"content-length") or 0)


def _reset(writer: asyncio.StreamWriter) -> bool:
    """End a connection with RST, as a crashed server or a firewall does."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False
