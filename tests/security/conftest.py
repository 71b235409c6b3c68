"""The checkpoint that the security tests encode with."""

import pytest

from tests.models import tiny_checkpoint


@pytest.fixture(scope="package")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_checkpoint(tmp_path_factory.mktemp("security") / "tiny")
