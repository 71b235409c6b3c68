"""A proxy before a real S3 server that lies: about conditions, about what it stored, about what it lists.

Conditions are answered by the server behind it; the proxy changes the answer, or does what a server without conditions would.
"""

import asyncio
import re
from collections import defaultdict
from contextlib import suppress
from typing import Any

import fsspec

from tests.faults.proxy import ENDED, FaultProxy, _body, _header

ERROR = b"<?xml version='1.0' encoding='UTF-8'?>\n<Error><Code>InternalError</Code><Message>again</Message></Error>"
PAGE = b"<html><body>It works!</body></html>"
LIES = {
    "kept": "a conditional PUT of a name that is there: 200, the old object stays",
    "overwritten": "conditions are not known: 200, the new object replaces the old one",
    "not implemented": "501 to every conditional PUT",
    "busy": "503 SlowDown to every reader while a PUT of a file is under way",
    "conflict": "409 to the first PUT of a name, which is not done",
    "refused": "412 to the first conditional PUT of a name, which is not done and not there",
    "always refused": "412 to every conditional PUT, which is not done",
    "lost": "the first conditional PUT of a name is done, its answer is 412, as to a retry of it",
    "error": "the first request of each kind and name, but HEAD: 200 with an error in its body, nothing done",
    "page": "the first PUT of a name: 200 with a page of HTML, nothing done",
    "wrong": "the first GET of a file: another body of the same length",
    "late": "a file is listed from the third listing on after it was written",
}
LISTINGS_LATE = 2
ITEM = rb"<Contents>(?:(?!</Contents>).)*?<Key>%b</Key>.*?</Contents>"
PATIENT_S = 0.3
"""A PUT is held for a reader, but not for ever: there may be none."""


class LyingProxy(FaultProxy):
    """Listens on a free port of 127.0.0.1 in a thread of its own, while in a `with` statement."""

    def __init__(self, upstream: int, lie: str, options: dict[str, Any], *, meet_s: float = 0.0) -> None:
        """Start nothing yet.

        Args:
            upstream: port of the server.
            lie: one of `LIES`.
            options: how to reach the server past the proxy.
            meet_s: hold the first conditional PUT of a name so long for one of another writer, so that neither saw the other's.
        """
        assert lie in LIES, f"expected a lie of {list(LIES)}, got {lie}"
        super().__init__(upstream, {})
        self.meet_s = meet_s
        self.meetings: dict[str, tuple[bytes, asyncio.Event]] = {}
        """By name: who came first, and whether another has come."""
        self.lie = lie
        self.fs = fsspec.filesystem("s3", **options, skip_instance_cache=True)
        self.seen: set[tuple[str, str]] = set()
        self.listings: dict[str, int] = defaultdict(int)
        """How many listings each new key is hidden from."""
        self.writing = 0
        self.refused = asyncio.Event()

    @property
    def lies(self) -> int:
        """Return how many answers were lies."""
        return self.counts["lies"]

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        if _header(head, b"expect"):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = b"".join([part async for part in _body(reader, head)])
        method, target = head.split(b" ", 2)[:2]
        self.counts["requests"] += 1
        answer = await self._answered(method.decode(), target.decode(), head, body)
        writer.write(answer)
        await writer.drain()
        return True

    async def _answered(self, method: str, target: str, head: bytes, body: bytes) -> bytes:
        name = target.split("?")[0]
        is_file = name.endswith((".parquet", ".json", ".jsonl"))
        first = (method, target) not in self.seen
        self.seen.add((method, target))
        if method == "PUT" and is_file:
            return await self._put(name, head, body, first=first)
        if self.lie == "busy" and self.writing:
            self.refused.set()
            return self._told(503, b"" if method == "HEAD" else ERROR.replace(b"InternalError", b"SlowDown"))
        if self.lie == "error" and first and method == "GET":
            return self._told(200, ERROR)
        answer = await self._passed(head, body)
        if self.lie == "wrong" and first and method == "GET" and is_file:
            start, _, content = answer.partition(b"\r\n\r\n")
            self.counts["lies"] += 1
            return _without_checksum(start) + b"\r\n\r\n" + bytes(len(content))
        return self._hidden(answer) if self.lie == "late" and "list-type" in target else answer

    async def _put(self, name: str, head: bytes, body: bytes, *, first: bool) -> bytes:
        conditional = bool(_header(head, b"if-none-match"))
        if first and self.lie == "conflict":
            return self._told(409, _error("ConditionalRequestConflict"))
        if conditional and self.lie == "not implemented":
            return self._told(501, _error("NotImplemented"))
        if conditional and (self.lie == "always refused" or (first and self.lie == "refused")):
            return self._told(412, _error("PreconditionFailed"))
        if first and self.lie in ("error", "page"):
            return self._told(200, ERROR if self.lie == "error" else PAGE)
        if conditional and self.meet_s and "/views/" not in name:  # of which each writer has its own
            await self._meet(name, _header(head, b"x-amz-meta-writer"))
        self.writing += 1
        try:
            answer = await self._passed(head, body)
            if self.lie == "busy":
                self.refused.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.refused.wait(), PATIENT_S)
        finally:
            self.writing -= 1
        self.listings[name.removeprefix("/").split("/", 1)[1]] = LISTINGS_LATE
        if first and conditional and self.lie == "lost" and b" 200 " in answer[:16]:
            return self._told(412, _error("PreconditionFailed"))
        if b" 412 " not in answer[:16] or self.lie not in ("kept", "overwritten"):
            return answer
        if self.lie == "overwritten":
            told = {"writer": _header(head, b"x-amz-meta-writer").decode()}
            await asyncio.to_thread(self.fs.pipe_file, name.removeprefix("/"), _plain(head, body), Metadata=told)
        return self._told(200, b"")

    async def _meet(self, name: str, writer: bytes) -> None:
        """Hold the first writer of a name until another comes; its own retries are held as well."""
        first, met = self.meetings.setdefault(name, (writer, asyncio.Event()))
        if first != writer:
            self.counts["met"] += not met.is_set()
            met.set()
        with suppress(TimeoutError):
            await asyncio.wait_for(met.wait(), self.meet_s)

    def _told(self, status: int, body: bytes) -> bytes:
        self.counts["lies"] += 1
        told = b'HTTP/1.1 %d x\r\nETag: "0"\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n'
        return told % (status, len(body)) + body

    async def _passed(self, head: bytes, body: bytes) -> bytes:
        """Return the server's answer, as on the wire."""
        up, sending = await asyncio.open_connection("127.0.0.1", self.upstream, limit=1 << 20)
        try:
            sending.write(head + body)
            while (answer := await up.readuntil(b"\r\n\r\n"))[9:10] == b"1":
                pass
            if head.startswith(b"HEAD ") or answer[9:12] in (b"204", b"304"):
                return answer
            return answer + b"".join([part async for part in _body(up, answer)])
        except ENDED:
            return b"HTTP/1.1 500 x\r\nContent-Length: 0\r\n\r\n"
        finally:
            sending.close()

    def _hidden(self, answer: bytes) -> bytes:
        """Return a listing without the keys that are too new for it."""
        head, _, body = answer.partition(b"\r\n\r\n")
        content = _plain(head + b"\r\n\r\n", body)
        for key in [key for key, left in self.listings.items() if left and key.encode() in content]:
            self.listings[key] -= 1
            self.counts["lies"] += 1
            content = re.sub(ITEM % re.escape(key.encode()), b"", content, flags=re.DOTALL)
        kept = [line for line in head.split(b"\r\n") if not line.lower().startswith((b"content-length", b"transfer-encoding"))]
        return b"\r\n".join([*kept, b"Content-Length: %d" % len(content)]) + b"\r\n\r\n" + content


def _plain(head: bytes, body: bytes) -> bytes:
    """Return a body without the frames of the wire: HTTP chunks, and those of a signed upload."""
    if _header(head, b"transfer-encoding").lower() == b"chunked":
        body = _joined(body)
    return _joined(body) if _header(head, b"content-encoding") == b"aws-chunked" else body


def _joined(body: bytes) -> bytes:
    parts, at = [], 0
    while (end := body.find(b"\r\n", at)) >= 0 and (size := int(body[at:end].split(b";")[0] or b"0", 16)):
        parts.append(body[end + 2 : end + 2 + size])
        at = end + 4 + size
    return b"".join(parts)


def _without_checksum(head: bytes) -> bytes:
    """Return a head without checksums: the driver would find out, and servers exist that send none."""
    return b"\r\n".join(line for line in head.split(b"\r\n") if not line.lower().startswith(b"x-amz-checksum"))


def _error(code: str) -> bytes:
    return ERROR.replace(b"InternalError", code.encode())
