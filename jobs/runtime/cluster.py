"""Where stages meet Ray: join or start a cluster, share out its CPUs, and run a stage as a pool of actors.

Pools take their CPUs one by one and keep them, so two jobs that each got a part could wait for each other for ever. Two rules
make that impossible: at most `JOBS` jobs have a turn on a cluster at a time, and each reserves so little that all of them fit.
"""

import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from jobs.runtime.logs import native_lines_logged
from pipeline.errors import ConfigError
from pipeline.models.device import C, here

logger = logging.getLogger(__name__)
REACH_S = 10.0
"""How long a cluster may take to answer at its address."""
NO_PROGRESS_S = 6 * 3600
"""Ray Data gives up after so long without a finished task; its default of half an hour is short for a queue of GPUs."""
JOBS = 4
"""Jobs that may run on one cluster at a time; additional jobs are queued."""
TURNS = "framefold"
"""Ray namespace of the names that stand for turns."""
LOOK_AGAIN_S = 1.0
AUTH = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
"""Variables by which a user decides who may talk to Ray."""


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Where the stages run."""

    runner: str = "ray"
    """ray, or local: in this process, for one machine without Ray."""
    address: str | None = None
    """A Ray cluster; default: the one this job was submitted to, or else a private one on this machine."""

    def __post_init__(self) -> None:
        if self.runner not in ("ray", "local"):
            raise ConfigError(f"runner must be ray or local, got {self.runner!r}")

    @property
    def joined(self) -> str:
        """Return the address of the cluster to join; `local` is a private one."""
        return self.address or os.environ.get("RAY_ADDRESS") or "local"


def placed(config: C, where: ClusterConfig, gpus: float, flag: str) -> C:
    """Return a config with device and dtype decided, for where its workers will run, `gpus` of them for each by `flag`.

    Raises ConfigError where device and GPUs contradict each other, or this machine is to have a GPU that it has not.
    """
    if where.runner == "local":
        return here(config)
    if config.device != "auto" and (config.device == "cpu") == (gpus > 0):
        raise ConfigError(f"--device {config.device} and {flag} {gpus:g} contradict each other: on Ray, {flag} decides")
    return config.on("cuda" if gpus > 0 else "cpu")


@contextmanager
def cluster(config: ClusterConfig) -> Iterator[list[float]]:
    """Join or start Ray; yields the CPUs of each node. A private cluster ends with the block that started it."""
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # GPUs stay hidden from actors that asked for none
    import ray

    if ray.is_initialized():
        yield _cpus()
        return
    address = config.joined
    _check_reachable(address)
    local: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    if address == "local" and not AUTH & os.environ.keys():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # Ray 2.60 would make one and keep it in the home folder
    try:
        with _our_handlers(), native_lines_logged():
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **local)
    except ConnectionError as error:
        raise ConfigError(f"no Ray cluster answers at {address}: {error}") from error
    try:
        _quiet()
        yield _cpus()
    finally:
        ray.shutdown()


def check_address(config: ClusterConfig) -> None:
    """Raise ConfigError where a job is to join a Ray cluster and nothing listens at its address."""
    if config.runner == "ray":
        _check_reachable(config.joined)


def check_cluster(config: ClusterConfig, gpus: float) -> None:
    """Raise ConfigError where the cluster of a job does not answer, or has fewer than `gpus` GPUs; runs nothing on it.

    A private cluster is started only to count GPUs, and ends before this returns.
    """
    if config.runner == "local" or (config.joined == "local" and not gpus):
        return
    with cluster(config):
        check_gpus(gpus)


@contextmanager
def _our_handlers() -> Iterator[None]:
    """Keep our handlers of signals while Ray 2.60 starts, which puts two of its own in their place.

    Python's raises SystemExit wherever `ray.init` happens to be: at best the process ends with 15 and no word, at worst a hook
    of `fork` swallows it, with the lock of `logging` taken: the job goes on, and every other thread that logs waits for ever.
    The one of its C++ core prints where the process is, and aborts it three seconds later.
    """
    from ray._private import utils

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def put_back(*_: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)

    theirs, utils.set_sigterm_handler = utils.set_sigterm_handler, put_back
    try:
        yield
    finally:
        utils.set_sigterm_handler = theirs
        put_back()


def _check_reachable(address: str) -> None:
    """Raise ConfigError where nothing listens at HOST:PORT: `ray.init` would ask again for minutes without a word."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"no Ray cluster answers at {address}: {error}") from error


def _cpus() -> list[float]:
    """Return the CPUs of each node that has some."""
    import ray

    found = [float(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return [cpus for cpus in found if cpus > 0] or [1.0]


@contextmanager
def turn(config: ClusterConfig, stop: threading.Event | None = None) -> Iterator[bool]:
    """Hold one of the `JOBS` turns on a shared cluster; yields whether others had to end first, or `stop` was set meanwhile.

    A turn is the name of an actor, which ends with its driver however that ends. A private cluster needs none.
    """
    if config.joined == "local":
        yield False
        return
    stop, waited = stop or threading.Event(), False
    while (held := _free_turn()) is None and not stop.is_set():
        if not waited:
            logger.info("%d jobs run on this cluster already: waiting for one of them to end", JOBS)
        waited = True
        stop.wait(LOOK_AGAIN_S)
    try:
        yield waited
    finally:
        del held  # the actor ends when nobody refers to it


def _free_turn() -> Any:
    """Return an actor that takes nothing but a name, None where all names are taken. Any: Ray's actors are untyped."""
    import ray

    for number in range(JOBS):
        try:
            return ray.remote(_Turn).options(name=f"turn-{number}", namespace=TURNS, num_cpus=0).remote()
        except ValueError:  # of another job
            continue
    return None


class _Turn:
    """An actor that does nothing."""


def _quiet() -> None:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.raise_original_map_exception = True  # wrapped once more, an error of ours loses its type on the way to the driver
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    if hasattr(context, "execution_no_progress_timeout_s"):
        context.execution_no_progress_timeout_s = NO_PROGRESS_S
    for name in ("ray.data", "ray.data._internal"):
        logging.getLogger(name).setLevel(logging.ERROR)


def share(cpus: Sequence[float], actors: int) -> float:
    """Return the CPUs that each actor of a job may reserve, given those of each node: one, or less on a small cluster.

    With actors of e CPUs on n nodes, a job reserves at most (sum of CPUs - n e) / JOBS. So of any JOBS jobs the one with the
    smallest e always fits: were an actor of it left over, less than e would be free on every node, more than all reserve
    would be taken. It runs to its end and makes room for the next.
    """
    each = sum(cpus) / (JOBS * actors + len(cpus))
    return min(1.0, int(10_000 * each) / 10_000)  # as finely as Ray counts


def source(blocks: Iterable[pa.Table]) -> Any:
    """Return a data set of these blocks: what a crash of a node loses, and what an actor takes at a time.

    `from_arrow` of Ray 2.60 would run a task on a whole CPU per block, for which a full cluster has no place.
    """
    import ray.data

    return ray.data.from_blocks(list(blocks))


def blocks(table: pa.Table, rows: int) -> list[pa.Table]:
    """Return slices of a table of so many rows each."""
    return [table.slice(start, rows) for start in range(0, table.num_rows, rows)]


def through(
    data: Any, stage: type[Any], arguments: Sequence[Any], *, workers: int, cpus: float, gpus: float = 0, batch: int | None
) -> Any:
    """Send a data set through a pool of actors that each build the stage once. Any: Ray's data sets are untyped here."""
    from ray.data import ActorPoolStrategy

    return data.map_batches(
        stage,
        fn_constructor_args=tuple(arguments),
        batch_format="pyarrow",
        batch_size=batch,
        compute=ActorPoolStrategy(size=workers),
        num_cpus=cpus,
        num_gpus=gpus,
    )


def check_share(name: str, gpus: float) -> None:
    """Raise ConfigError unless the flag `name` holds GPUs for one worker: a part of one, or whole ones, as Ray has it."""
    if not gpus >= 0 or (gpus > 1 and not float(gpus).is_integer()):
        raise ConfigError(f"{name} must be from 0 to 1, or a whole number, got {gpus:g}")


def check_gpus(wanted: float) -> None:
    """Raise ConfigError where the cluster has fewer GPUs than the pool needs: Ray would wait in silence."""
    import ray

    found = float(ray.cluster_resources().get("GPU", 0))
    if wanted > found:
        raise ConfigError(f"expected {wanted:g} GPUs for the encoders or engines, the cluster has {found:g}")
