"""A real HTTP server on loopback that remembers who asked for what."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

Asked = list[tuple[str, str]]


@contextlib.contextmanager
def web_server(folder: Path) -> Iterator[str]:
    """Serve a folder as `python -m http.server` does; yield the URL."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            return None

    with _serving(functools.partial(Quiet, directory=str(folder))) as url:
        yield url


@contextlib.contextmanager
def http_server(files: Mapping[str, bytes], cut: Mapping[str, int] | None = None) -> Iterator[tuple[str, Asked]]:
    """Serve some files; yield the URL and the requests so far, as method and path. `cut`: bytes after which a body ends."""
    asked: Asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            path = self.path.split("?")[0]
            asked.append((self.command, self.path))
            if path not in files:
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(len(files[path])))
            self.end_headers()
            content = files[path][: (cut or {}).get(path)]
            if body:
                for at in range(0, len(content), 500):
                    self.wfile.write(content[at : at + 500])
                    self.wfile.flush()
                self.close_connection = True
            return None

        def log_message(self, *_: object) -> None:
            return None

    with _serving(Handler) as url:
        yield url, asked


@contextlib.contextmanager
def _serving(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
