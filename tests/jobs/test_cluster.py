"""Where a job runs, and what it says where it cannot; the jobs themselves on Ray are in `test_ray.py`."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.runtime.cluster import JOBS, ClusterConfig, blocks, check_share, share, turn
from pipeline.errors import ConfigError

ROOT = Path(__file__).parents[2]
TRY = """
import sys
from dataclasses import dataclass
from jobs.runtime.cluster import ClusterConfig, check_gpus, cluster, turn
from jobs.runtime.launch import launch

@dataclass(frozen=True, kw_only=True)
class Job:
    address: str
    gpus: float

def run(job):
    config = ClusterConfig(address=job.address)
    with cluster(config) as cpus, turn(config) as waited:
        check_gpus(job.gpus)
        return {"cpus": cpus, "waited": waited}

sys.exit(launch(Job, run, "framefold try"))
"""


def tried(address: str, gpus: float) -> subprocess.CompletedProcess[str]:
    found = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {**found, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-c", TRY, "--address", address, "--gpus", str(gpus)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_a_flag_names_the_cluster_before_the_environment_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that was submitted to a cluster runs there; by itself it has a private one."""
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert ClusterConfig(address="10.0.0.2:6379").joined == "10.0.0.2:6379"
    assert ClusterConfig().joined == "10.0.0.1:6379"
    for nothing in ("", None):
        monkeypatch.delenv("RAY_ADDRESS") if nothing is None else monkeypatch.setenv("RAY_ADDRESS", nothing)
        assert ClusterConfig().joined == "local"


@pytest.mark.ray
def test_gpus_that_are_not_there_are_missed_at_once() -> None:
    """Ray would wait for them in silence, for ever."""
    ran = tried("local", 1.5)
    assert (ran.returncode, ran.stdout) == (2, ""), ran.stderr
    assert "expected 1.5 GPUs for the encoders or engines, the cluster has 0" in ran.stderr


@pytest.mark.ray
def test_no_gpu_wanted_is_no_gpu_missed() -> None:
    """A private cluster on this machine, and nobody to wait for."""
    ran = tried("local", 0)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == f'{{"cpus": [{float(os.cpu_count() or 1)}], "waited": false}}'


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nothing_listens_is_told_at_once(scheme: str) -> None:
    """Exit 2 and one line; Ray itself asks again for minutes in silence."""
    with socket.socket() as taken:  # bound, not listening: nobody else gets the port meanwhile
        taken.bind(("127.0.0.1", 0))
        address = f"{scheme}127.0.0.1:{taken.getsockname()[1]}"
        ran = tried(address, 0)
    assert (ran.returncode, ran.stdout) == (2, ""), ran.stderr
    assert f"no Ray cluster answers at {address}: [Errno 111] Connection refused" in ran.stderr


def test_an_actor_reserves_a_whole_cpu_where_there_are_enough_and_its_part_where_there_are_not() -> None:
    """Two CPUs, two pools of one actor: two ninths; the same CPUs on two nodes give less, for each may waste a part."""
    assert share([64.0], 2) == share([8.0, 8.0], 1) == 1.0
    assert share([2.0], 2) == 0.2222
    assert share([2.0, 2.0], 2) == 0.4
    assert share([9.0], 2) == 1.0
    assert share([8.0], 2) == 0.8888


@given(cpus=st.lists(st.integers(1, 96).map(float), min_size=1, max_size=9), actors=st.integers(1, 300))
def test_as_many_jobs_as_may_run_reserve_so_little_that_another_actor_fits(cpus: list[float], actors: int) -> None:
    """However they lie on the nodes: where no node had room for one more, more would be taken than all of them reserve."""
    each = share(cpus, actors)
    assert 0 < each <= 1
    assert JOBS * actors * each <= sum(cpus) - len(cpus) * each + 1e-9


def test_blocks_hold_every_row_once_and_in_order() -> None:
    """The last one may be shorter; nothing has no blocks."""
    table = pa.table({"row": range(7)})
    assert [block["row"].to_pylist() for block in blocks(table, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [block.num_rows for block in blocks(table, 7)] == [7]
    assert blocks(table[:0], 3) == []


@pytest.mark.parametrize("gpus", [-1, -0.5, 1.5, 2.25, float("inf"), float("nan")])
def test_gpus_of_a_worker_are_a_part_of_one_or_whole_ones(gpus: float) -> None:
    """As Ray has it."""
    with pytest.raises(ConfigError, match=r"gpus_per_engine must be from 0 to 1, or a whole number, got "):
        check_share("gpus_per_engine", gpus)
    for right in (0, 0.25, 1, 2, 8.0):
        check_share("gpus_per_engine", right)


def test_a_private_cluster_needs_no_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor Ray: nobody else can be on it."""
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with turn(ClusterConfig()) as waited:
        assert not waited
        assert not ray.is_initialized()


@pytest.mark.parametrize("runner", ["spark", "", "Ray"])
def test_an_unknown_runner_is_refused(runner: str) -> None:
    with pytest.raises(ConfigError, match=f"runner must be ray or local, got '{runner}'"):
        ClusterConfig(runner=runner)
