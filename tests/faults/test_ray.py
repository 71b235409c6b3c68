"""Killed Ray workers and nodes, in short. Drivers, double runs and double submits on Ray are in `tests/jobs/test_ray.py`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import faults
from tests.faults.nodes import Nodes
from tests.faults.runs import Place, place

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[Place, Nodes]]:
    """A head that runs nothing and two nodes."""
    with place() as where, Nodes(where) as nodes:
        yield where, nodes


def test_a_killed_worker_costs_time_and_no_video(cluster: tuple[Place, Nodes], tmp_path: Path) -> None:
    """kill -9 of an actor that decodes, encodes or commits: the same run goes on to its end."""
    where, nodes = cluster
    outcome = faults.workers(tmp_path, videos=24, kills=2, nodes=nodes, where=where)
    assert outcome.runs[0].code == 0, outcome.runs[0].said
    assert outcome.ok, outcome
    assert outcome.found.again == 0


def test_a_lost_node_costs_time_and_no_video(cluster: tuple[Place, Nodes], tmp_path: Path) -> None:
    """All processes of a node killed, another node added: the same run goes on to its end."""
    where, nodes = cluster
    outcome = faults.lost_nodes(tmp_path, videos=24, kills=1, nodes=nodes, where=where)
    assert outcome.runs[0].code == 0, outcome.runs[0].said
    assert outcome.ok, outcome
    assert outcome.found.again == 0
