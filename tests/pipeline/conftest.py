"""Fixtures that several modules here use."""

from collections.abc import Iterator

import pytest

from pipeline.decode import Decode, DecodeConfig


@pytest.fixture(scope="module")
def stage() -> Iterator[Decode]:
    """Decodes to 56 pixels a side; one for all tests of a module."""
    with Decode(DecodeConfig(deadline_s=60), side_px=56) as stage:
        yield stage
