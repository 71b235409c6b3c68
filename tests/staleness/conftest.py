"""The checkpoint that the staleness tests encode with."""

from pathlib import Path

import pytest

from tests.models import tiny_checkpoint
from tests.staleness.encoding import joint_space


@pytest.fixture(scope="package")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tiny_checkpoint(tmp_path_factory.mktemp("staleness") / "tiny")
    joint_space(Path(path))
    return path
