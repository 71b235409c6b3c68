"""Videos that come only when a test lets them: a run that needs them cannot be over before, however slow the test is."""

import contextlib
import json
import math
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Gate:
    """Files of a folder over HTTP: how large each is, is told at once; its bytes wait until it is let through."""

    def __init__(self, folder: Path, port: int) -> None:
        self.paths = sorted(folder.iterdir())
        self.url = f"http://127.0.0.1:{port}"
        self.open: float = 0
        self.held = 0
        """Requests that wait."""
        self._lock = threading.Condition()

    def manifest(self, path: Path) -> str:
        """Write a corpus of all files, the first ones first, and return its path."""
        lines = [{"video_id": file.stem, "uri": f"{self.url}/{file.name}"} for file in self.paths]
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        return str(path)

    def let(self, files: float = math.inf) -> None:
        """Let the first files through, so many in all."""
        with self._lock:
            self.open = files
            self._lock.notify_all()

    def wait(self, at: int) -> None:
        """Return once a file is let through."""
        with self._lock:
            self.held += 1
            self._lock.wait_for(lambda: at < self.open)
            self.held -= 1


class _Handler(BaseHTTPRequestHandler):
    gate: Gate

    def do_HEAD(self) -> None:
        self._begun()

    def do_GET(self) -> None:
        at = self._begun()
        if at is not None:
            self.wfile.write(self.gate.paths[at].read_bytes())

    def _begun(self) -> int | None:
        """Send the head of an answer, when it is time, and return which file it is about."""
        at = next((at for at, path in enumerate(self.gate.paths) if path.name == self.path.strip("/")), None)
        if at is None:
            self.send_error(404)
            return None
        if self.command == "GET":
            self.gate.wait(at)
        self.send_response(200)
        self.send_header("Content-Length", str(self.gate.paths[at].stat().st_size))
        self.end_headers()
        return at

    def log_message(self, *_: object) -> None:
        """Stay quiet."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that was killed is no news."""


@contextlib.contextmanager
def gate(folder: Path) -> Iterator[Gate]:
    """Serve a folder on a free port, all of it held back."""
    handler = type("Bound", (_Handler,), {})
    server = _Server(("127.0.0.1", 0), handler)
    found = Gate(folder, server.server_address[1])
    handler.gate = found  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        found.let()
        server.shutdown()
        server.server_close()
        thread.join()
