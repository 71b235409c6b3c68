"""A real HTTP server on loopback that speaks /v1/chat/completions, judges by string equality, and fails on demand."""

import contextlib
import json
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = Callable[["Handler"], None]


def completion(text: Any, model: str = "judge-2026-01-01") -> bytes:
    """The body of a chat completion."""
    message = {"role": "assistant", "content": text}
    body = {"object": "chat.completion", "model": model, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    return json.dumps(body).encode()


def says(text: Any) -> Fault:
    """Reply with this text instead of a verdict."""
    return lambda handler: handler.reply(200, completion(text))


def body(content: bytes, status: int = 200, **headers: str) -> Fault:
    """Reply with these bytes."""
    return lambda handler: handler.reply(status, content, **headers)


def close(handler: "Handler") -> None:
    """End the connection without a word."""
    handler.close_connection = True


def cut(handler: "Handler") -> None:
    """End the connection in the middle of the body."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(completion("{'pred': 'yes', 'score': 5}"))
    handler.close_connection = True


PATIENT_S = 60.0
"""A client that waits so long for one reply does get it: then a test without a timeout fails and does not hang."""


def hang(handler: "Handler") -> None:
    """Say nothing until the client goes away, or for a long time."""
    handler.connection.settimeout(PATIENT_S)
    try:
        handler.judge.abandoned += handler.connection.recv(1) == b""
    except TimeoutError:
        handler.reply(200, completion("{'pred': 'no', 'score': 0}"))
    handler.close_connection = True


def drip(handler: "Handler") -> None:
    """Send a blank of the body now and then, for a long time."""
    said = completion("{'pred': 'no', 'score': 0}")
    blanks = int(PATIENT_S / 0.05)
    handler.send_response(200)
    handler.send_header("Content-Length", str(blanks + len(said)))
    handler.end_headers()
    for _ in range(blanks):
        handler.server.ended.wait(0.05)  # type: ignore[attr-defined]
        handler.wfile.write(b" ")
        handler.wfile.flush()
    handler.wfile.write(said)


class Handler(BaseHTTPRequestHandler):
    """Answers one request: the next fault of its question, else the verdict."""

    protocol_version = "HTTP/1.1"
    judge: "JudgeServer"

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        case = json.loads(request["messages"][1]["content"].split("\n", 1)[1])
        fault = self.judge.enter(self.path, dict(self.headers), request, case)
        try:
            if self.path != "/v1/chat/completions":
                self.reply(404, b"no such route")
            elif fault is not None:
                fault(self)
            else:
                same = case["answer"].lower() == case["reference"]
                self.reply(200, completion(json.dumps({"pred": "yes" if same else "no", "score": 5 if same else 1})))
        except OSError:
            self.close_connection = True
        finally:
            self.judge.leave()

    def reply(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Stay quiet."""


class JudgeServer:
    """What the server was asked, and what it does wrong."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/v1"
        self.faults: dict[str, list[Fault]] = {}
        """By prediction: what happens to its first requests, in order."""
        self.always: Fault | None = None
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []
        self.asked: Counter[str] = Counter()
        self.most_at_once = 0
        self.abandoned = 0
        """Requests that the client no longer waited for, of those that hung."""
        self.answered: float = math.inf
        """How many requests are answered; see `let`."""
        self._now = self._running = 0
        self._lock = threading.Condition()

    def enter(self, path: str, headers: dict[str, str], request: dict[str, Any], case: dict[str, str]) -> Fault | None:
        with self._lock:
            self._now += 1
            self._running += 1
            self.most_at_once = max(self.most_at_once, self._now)
            self.requests.append({"path": path, **request})
            self.headers.append(headers)
            self.asked[case["answer"]] += 1
            planned = self.faults.get(case["answer"])
            fault = planned.pop(0) if planned else self.always
            number = len(self.requests)
            self._lock.notify_all()
            self._lock.wait_for(lambda: number <= self.answered)
            self._now -= 1  # before the reply: a client may be back before this thread is
        return fault

    def leave(self) -> None:
        with self._lock:
            self._running -= 1
            self._lock.notify_all()

    def let(self, answered: float = math.inf) -> None:
        """Answer so many requests in all and hold the others back."""
        with self._lock:
            self.answered = answered
            self._lock.notify_all()

    def wait_for(self, requests: int) -> None:
        """Return once so many requests have come in."""
        with self._lock:
            self._lock.wait_for(lambda: len(self.requests) >= requests)

    def wait_for_the_end(self) -> None:
        """Return once nothing more is done about any request."""
        with self._lock:
            self._lock.wait_for(lambda: not self._running)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    ended: threading.Event

    def handle_error(self, *_: object) -> None:
        """A client that went away is no news."""


@contextlib.contextmanager
def judge_server() -> Iterator[JudgeServer]:
    """Run a server on a free port."""
    handler = type("Bound", (Handler,), {})
    server = _Server(("127.0.0.1", 0), handler)
    server.ended = threading.Event()
    judge = JudgeServer(server.server_address[1])
    handler.judge = judge  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield judge
    finally:
        judge.let()
        server.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
