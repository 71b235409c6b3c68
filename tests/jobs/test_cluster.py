"""Where a job runs, and what it says where it cannot; the jobs themselves on Ray are in `test_ray.py`."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cluster import ClusterConfig

ROOT = Path(__file__).parents[2]
TRY = """
import sys
from dataclasses import dataclass
from jobs.cluster import ClusterConfig, check_gpus, cluster, turn
from jobs.launch import launch

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
