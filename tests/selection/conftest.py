"""The stores that all tests of selection read."""

from pathlib import Path

import pytest

from pipeline.models.checkpoint import Checkpoint
from pipeline.models.clip_space import JointSpace
from pipeline.store.token_store import TokenStore
from tests.selection.stored import SHAPES, encoded


@pytest.fixture(autouse=True)
def quick(one_thread: None) -> None:
    """The models here are small."""


@pytest.fixture(scope="package")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from jobs.commands.shapes import ShapesJob, run

    folder = tmp_path_factory.mktemp("selection") / "corpus"
    run(ShapesJob(out=str(folder), videos=3))
    return folder


@pytest.fixture(scope="package")
def nest(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return encoded(videos, tmp_path_factory.mktemp("nest"), "nest", clip_space=True)


@pytest.fixture(scope="package")
def whole(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return encoded(videos, tmp_path_factory.mktemp("whole"), "none", clip_space=True)


@pytest.fixture(scope="package")
def space() -> JointSpace:
    return JointSpace.open(Checkpoint.open(SHAPES))
