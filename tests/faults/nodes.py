"""A Ray cluster of several nodes on this machine, in a process of its own that is told what to do by lines.

The head runs nothing; nodes come with `add`, and `kill` ends one as a power cut does.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from tests.faults.runs import ROOT, Place

STORE_BYTES = 150 << 20


def main() -> None:
    """Start a head, then obey lines from stdin: `add CPUS`, `kill AT`; each is answered by a line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--store-bytes", type=int, default=STORE_BYTES)
    parser.add_argument("--dashboard-port", type=int, default=0)
    given = parser.parse_args()
    from ray.cluster_utils import Cluster

    each = {"object_store_memory": given.store_bytes}
    head = {**each, "num_cpus": 0, "include_dashboard": bool(given.dashboard_port)}
    if given.dashboard_port:
        head |= {"dashboard_port": given.dashboard_port, "dashboard_host": "127.0.0.1"}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    _say({"address": cluster.address})
    for line in sys.stdin:
        verb, argument = line.split()
        if verb == "add":
            cluster.add_node(num_cpus=int(argument), **each)
        else:
            nodes = sorted(cluster.worker_nodes, key=lambda node: node.unique_id)
            cluster.remove_node(nodes[int(argument) % len(nodes)], allow_graceful=False)
        _say({"nodes": len(cluster.worker_nodes)})
    cluster.shutdown()


def _say(message: dict[str, object]) -> None:
    sys.stdout.write(f"\n@{json.dumps(message)}\n")
    sys.stdout.flush()


class Nodes:
    """The other side of `main`, a context manager."""

    def __init__(
        self, place: Place, cpus: tuple[int, ...] = (2, 2), store_bytes: int = STORE_BYTES, dashboard_port: int = 0
    ) -> None:
        self.store_bytes, self.dashboard_port = store_bytes, dashboard_port
        self.environment = place.environment()
        words = [f"--store-bytes={store_bytes}", f"--dashboard-port={dashboard_port}"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.nodes", *words], cwd=ROOT, env=self.environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self.address = str(self._heard()["address"])
        for count in cpus:
            self.add(count)

    def add(self, cpus: int = 2) -> None:
        """Add a node."""
        self._tell(f"add {cpus}")

    def kill(self, at: int = 0) -> None:
        """End all processes of a node with SIGKILL."""
        self._tell(f"kill {at}")

    def submit(self, *words: str) -> subprocess.Popen[str]:
        """Submit a command to the cluster's job server and follow it."""
        ray = str(Path(sys.executable).parent / "ray")
        dashboard = f"http://127.0.0.1:{self.dashboard_port}"
        command = [ray, "job", "submit", "--address", dashboard, "--"]
        return subprocess.Popen(
            [*command, *words], env=self.environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def _tell(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        self._heard()

    def _heard(self) -> dict[str, object]:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith("@"):
                heard: dict[str, object] = json.loads(line[1:])
                return heard
        raise RuntimeError("the cluster has ended")

    def __enter__(self) -> "Nodes":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()


if __name__ == "__main__":
    main()
