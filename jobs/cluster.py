"""Where stages meet Ray: join or start a cluster, share out its CPUs, and run a stage as a pool of actors."""

import logging
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.errors import ConfigError

logger = logging.getLogger(__name__)
NO_PROGRESS_S = 6 * 3600
"""Ray Data gives up after so long without a finished task; its default of half an hour is short for a queue of GPUs."""


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


@contextmanager
def cluster(config: ClusterConfig) -> Iterator[float]:
    """Join or start Ray; yields the number of CPUs. A private cluster ends with the block that started it."""
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # GPUs stay hidden from actors that asked for none
    import ray

    if ray.is_initialized():
        yield float(ray.cluster_resources().get("CPU", 1))
        return
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    local: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **local)
    except ConnectionError as error:
        raise ConfigError(f"no Ray cluster answers at {address}: {error}") from error
    for number, handler in handlers.items():  # Ray 2.60 puts its own in place, which exit at once
        signal.signal(number, handler)
    try:
        _quiet()
        yield float(ray.cluster_resources().get("CPU", 1))
    finally:
        ray.shutdown()


def _quiet() -> None:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = False
    if hasattr(context, "execution_no_progress_timeout_s"):
        context.execution_no_progress_timeout_s = NO_PROGRESS_S
    for name in ("ray.data", "ray.data._internal"):
        logging.getLogger(name).setLevel(logging.ERROR)


def share(cpus: float, actors: int) -> float:
    """Return the CPUs that each actor may reserve so that all of them start: one, or less on a small machine.

    Pools take their CPUs first and keep them; if one could not start, the job would wait for ever.
    """
    return min(1.0, int(100 * 0.9 * cpus / actors) / 100)


def source(table: pa.Table, rows_per_block: int) -> Any:
    """Return a data set with small blocks: what a crash of a node loses, and what an actor takes at a time."""
    import ray.data

    starts = range(0, table.num_rows, rows_per_block)
    return ray.data.from_arrow([table.slice(start, rows_per_block) for start in starts])


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


def check_gpus(wanted: float) -> None:
    """Raise ConfigError where the cluster has fewer GPUs than the pool needs: Ray would wait in silence."""
    import ray

    found = float(ray.cluster_resources().get("GPU", 0))
    if wanted > found:
        raise ConfigError(f"expected {wanted:g} GPUs for the encoders or engines, the cluster has {found:g}")
