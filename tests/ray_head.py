"""A real Ray head on private ports, for tests that submit jobs to it, join it or scrape its metrics."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.command import ROOT
from tests.ports import free_ports

HEAD = """
import sys, time
import ray
from ray.experimental.internal_kv import _internal_kv_list
told = {"include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": int(sys.argv[1]), "_temp_dir": sys.argv[3]}
ray.init("local", num_cpus=2, _node_ip_address="127.0.0.1", _metrics_export_port=int(sys.argv[2]), **told)
while not _internal_kv_list(b"DASHBOARD_AGENT_ADDR_NODE_ID_PREFIX:", namespace=b"dashboard"):
    time.sleep(0.1)  # until the agent is there to which jobs are given
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""
"""A head as `ray start` has it, but for the server of `ray://`, which no job here needs: it gives up on a node that takes 30 s
to start, and `ray start --block` ends with it."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """Where a head is reached."""

    address: str
    """By drivers that join."""
    jobs: str
    """By `ray job submit`."""
    metrics: str
    """By Prometheus."""


def environment(ray_folder: str) -> dict[str, str]:
    found = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {**found, "PYTHONPATH": paths, "RAY_TMPDIR": ray_folder, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}


def end_group(leader: subprocess.Popen[Any]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader.pid, signal.SIGKILL)
    leader.wait()
    for pipe in (leader.stdout, leader.stderr):
        if pipe is not None:
            pipe.close()


@contextlib.contextmanager
def ray_head(folder: str) -> Iterator[Head]:
    """Start a head whose files lie below a folder of a short name: Ray's sockets do. It ends with the block."""
    jobs, metrics = free_ports(2)
    command = [sys.executable, "-c", HEAD, str(jobs), str(metrics), f"{folder}/head"]
    patient = {**environment(folder), "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "600", "RAY_USAGE_STATS_ENABLED": "0"}
    with (Path(folder) / "head.log").open("wb") as log:
        told = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log, "start_new_session": True}
        process = subprocess.Popen(command, cwd=ROOT, env=patient, **told)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        address = process.stdout.readline().decode().strip()
        for port in (jobs, metrics):
            _wait_for(port, process, Path(log.name))
        yield Head(address=address, jobs=f"http://127.0.0.1:{jobs}", metrics=f"http://127.0.0.1:{metrics}/metrics")
    finally:
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(120)
        end_group(process)


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    while True:
        assert process.poll() is None, log.read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)


def submit(jobs: str, folder: str, name: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run `ray job submit` with a module and its flags, and return what came back."""
    command = [str(Path(sys.executable).parent / "ray"), "job", "submit", "--address", jobs, "--submission-id", name]
    command += ["--working-dir", str(ROOT), "--", sys.executable, "-m", *args]
    return subprocess.run(command, env=environment(folder), capture_output=True, text=True, check=False)
