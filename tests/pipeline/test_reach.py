"""An address at which nothing answers is told of before a job begins; one that answers late is waited for."""

import socket
import threading
from typing import Any

import pytest

from pipeline.errors import ConfigError
from pipeline.storage.preflight import REACH_S, check_reachable, endpoint_of
from tests.command import framefold
from tests.http_server import http_server


@pytest.fixture
def closed() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)


def options(port: int, **more: Any) -> dict[str, Any]:
    return {"key": "k", "secret": "hunter2hunter2", "endpoint_url": f"http://127.0.0.1:{port}", **more}


def test_nothing_at_the_endpoint_is_one_sentence_after_a_few_seconds(closed: int) -> None:
    waits: list[float] = []
    with pytest.raises(ConfigError, match=f"no storage answers at http://127.0.0.1:{closed}: .*refused"):
        check_reachable(["s3://bucket/store"], options(closed), waits.append)
    assert 5 < sum(waits) < REACH_S


def test_an_endpoint_that_comes_up_late_is_waited_for(closed: int) -> None:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", closed))
        waits: list[float] = []

        def listen_after_two(wait: float) -> None:
            waits.append(wait)
            if len(waits) == 2:
                server.listen()

        check_reachable(["s3://bucket/a", None, "s3://bucket/b", "/local/path"], options(closed), listen_after_two)
    assert len(waits) == 2


def test_a_host_that_does_not_exist_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"no storage answers at http://no-such-host\.invalid:9"):
        check_reachable(["s3://b/x"], {"endpoint_url": "http://no-such-host.invalid:9"}, lambda _: None)
    with pytest.raises(ConfigError, match="not a usable address"):
        check_reachable(["s3://b/x"], {"endpoint_url": "http://host:99999"}, lambda _: None)


@pytest.mark.parametrize(
    ("url", "given", "env", "endpoint"),
    [
        ("/local/x", {}, {}, None),
        ("s3://b/x", {}, {}, None),
        ("s3://b/x", {"client_kwargs": {"endpoint_url": "https://h"}}, {}, "https://h"),
        ("s3://b/x", {}, {"AWS_ENDPOINT_URL": "http://h:9000/"}, "http://h:9000"),
        ("s3://b/x", {"endpoint_url": "http://h:1"}, {"HTTP_PROXY": "http://p:1"}, None),
        ("s3://b/x", {"endpoint_url": "http://h:1"}, {"HTTP_PROXY": "http://p:1", "NO_PROXY": "h"}, "http://h:1"),
        ("http://h/videos/a.mp4", {}, {}, "http://h"),
        ("memory://x", {}, {}, None),
    ],
)
def test_only_an_address_that_is_known_and_asked_directly_is_tried(
    url: str, given: dict[str, Any], env: dict[str, str], endpoint: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert endpoint_of(url, given) == endpoint


def test_a_server_that_accepts_is_believed() -> None:
    """What it says is the driver's business, and its patience."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        threading.Thread(target=lambda: server.accept()[0].close(), daemon=True).start()
        check_reachable(["s3://b/x"], options(port))


def test_tls_where_none_is_spoken_is_told_at_once() -> None:
    with http_server({}) as (url, _), pytest.raises(ConfigError, match="does not speak TLS: pass it as http"):
        check_reachable(["s3://b/x"], {"endpoint_url": url.replace("http", "https")})


@pytest.mark.parametrize(
    "given",
    [
        {"bogus": 1},
        {"client_kwargs": 5},
        {"endpoint_url": 5},
        {"endpoint_url": "127.0.0.1:9"},
        {"config_kwargs": {"bogus": 1}},
        {"client_kwargs": {"bogus": 1}},
    ],
)
def test_storage_options_that_nobody_understands_are_refused(given: dict[str, Any]) -> None:
    """By s3fs, by its session, by its client: in one sentence, before anything is asked."""
    with pytest.raises(ConfigError, match=r"storage options cannot be used|expected an endpoint"):
        check_reachable(["s3://b/x"], {"key": "k", "secret": "s", **given})


def test_a_command_says_so_and_no_secret(closed: int) -> None:
    ran = framefold("store", "ls", "s3://b/store", "--storage-options", f'{{"endpoint_url": "http://me:hunter2@127.0.0.1:{closed}"}}')
    assert ran.returncode == 2
    assert ran.stderr.splitlines()[-1].startswith(f"framefold: no storage answers at http://***@127.0.0.1:{closed}: ")
    assert "hunter2" not in ran.stderr
    assert "Traceback" not in ran.stderr
