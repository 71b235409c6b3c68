"""What many tests share: an S3 server, a store on either kind of storage, and quiet native libraries."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from hypothesis import settings

from tests import s3
from tests.activitynet import write_split
from tests.judge_server import JudgeServer, judge_server
from tests.marking import mark, some_cases

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, torch.get_num_threads()))
settings.register_profile("framefold", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("framefold")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cases", type=int, help="run at most so many parameter sets of each test, spread over all it has")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Before the markers of the command line choose among the tests."""
    mark(items)
    if config.option.cases:
        items[:], others = some_cases(items, config.option.cases)
        config.hook.pytest_deselected(items=others)


@pytest.fixture(scope="session")
def s3_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a real S3 server, started when the first test asks."""
    with s3.server(tmp_path_factory.mktemp("seaweed")) as port:
        yield port


@pytest.fixture
def bucket(s3_port: int) -> tuple[str, dict[str, Any]]:
    """A fresh prefix on the S3 server, with the options to reach it."""
    options = s3.options(s3_port)
    fs = fsspec.filesystem("s3", **options)
    if not fs.exists("tests"):
        fs.mkdir("tests")
    return f"s3://tests/{uuid.uuid4().hex}", options


@pytest.fixture(scope="session")
def activitynet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a split in the layout of ActivityNet-QA."""
    return write_split(tmp_path_factory.mktemp("activitynet"))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    """A real HTTP server that judges."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with judge_server() as found:
        yield found


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Models this small gain nothing from threads, and on a busy machine waiting for them is 100 times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def place(request: pytest.FixtureRequest, tmp_path) -> tuple[str, dict[str, Any]]:
    """A root URL with storage options: local disk, then a real S3 server."""
    if request.param == "local":
        return str(tmp_path / "store"), {}
    found: tuple[str, dict[str, Any]] = request.getfixturevalue("bucket")
    return found
