"""Fixtures that several modules here use. Imports stand within: most tests here need neither a decoder nor transformers."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pipeline.decode.stage import Decode
    from pipeline.engines.vllm_engine import VllmEngine


@pytest.fixture(scope="module")
def stage() -> Iterator["Decode"]:
    """Decodes to 56 pixels a side; one for all tests of a module."""
    from pipeline.decode.config import DecodeConfig
    from pipeline.decode.stage import Decode

    with Decode(DecodeConfig(deadline_s=60), side_px=56) as stage:
        yield stage


@pytest.fixture
def vllm_on_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports go to the test's own folder; OpenMP's threads are not bound to cores that other work may hold."""
    monkeypatch.setenv("FRAMEFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")


@pytest.fixture
def start() -> Iterator[Any]:
    """Start an engine of vLLM, and close it after the test."""
    from pipeline.engines.vllm_engine import VllmEngine
    from pipeline.models.checkpoint import Checkpoint
    from tests.pipeline.vllm_engines import ON_CPU, TEMPLATE

    started: list[VllmEngine] = []

    def one(path: str, **options: Any) -> "VllmEngine":
        started.append(VllmEngine(Checkpoint.open(path), TEMPLATE, **{**ON_CPU, **options}))
        return started[-1]

    yield one
    for engine in started:
        engine.close()
