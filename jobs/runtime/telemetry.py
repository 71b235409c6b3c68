"""Series for Prometheus: what became of videos and questions, bytes written, seconds per stage, and how the run ended.

The driver counts what stages report, never an id of a video. A run on Ray tells Ray's own metrics endpoint, which puts `ray_`
in front of each name; any run writes a file for node_exporter's textfile collector where it is asked for one.
"""

import errno
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import prometheus_client
import pyarrow as pa

from jobs.runtime.launch import DONE, Report, code_of
from jobs.runtime.timing import spent
from pipeline.errors import ConfigError

logger = logging.getLogger(__name__)
EVERY_S = 15.0
"""How often the file is renewed while a job runs; node_exporter is scraped no more often, as a rule."""
BUCKETS = [0.01 * 2**power for power in range(17)]
"""Seconds, 10 ms to 11 minutes. Each is twice the one before, as Ray 2.60 adds up a sum from the middles of buckets."""
SHOWN = 12
"""Letters of a fingerprint in a label."""


class Series(NamedTuple):
    """A series: what kind it is, and its labels besides `command`, which is not called `job` as that is Prometheus' own."""

    kind: str
    help: str
    labels: tuple[str, ...] = ()


SERIES = {
    "framefold_videos_total": Series("Counter", "Videos or segments by outcome.", ("fingerprint", "status", "error_class")),
    "framefold_written_bytes_total": Series("Counter", "Bytes of token features committed.", ("fingerprint",)),
    "framefold_questions_total": Series("Counter", "Questions by status of their answer.", ("fingerprint", "status")),
    "framefold_stage_seconds": Series("Histogram", "Seconds of a stage for one table.", ("fingerprint", "stage")),
    "framefold_pending": Series("Gauge", "Videos or questions that this run has yet to do.", ("fingerprint",)),
}
RUN = {
    "framefold_run_start_timestamp_seconds": Series("Gauge", "When the last run began."),
    "framefold_run_end_timestamp_seconds": Series("Gauge", "When it ended; absent while it runs, or where it was killed."),
    "framefold_run_exit_code": Series("Gauge", "How it ended: 0 done, 1 too many failed, 2 setting, 3 stopped, 4 fault."),
}
"""In the file alone: Ray forgets a gauge when its driver ends."""


class Meter:
    """Counts for one run of one command."""

    def __init__(self, command: str, path: str | None = None, *, on_ray: bool = False) -> None:
        self.command = command
        self.path = path
        self.on_ray = on_ray
        self.registry = prometheus_client.CollectorRegistry()
        self.in_file = {name: self._collector(name, series) for name, series in {**SERIES, **RUN}.items()}
        self.in_ray: dict[str, Any] = {}
        self.waiting: list[tuple[str, float, dict[str, str]]] = []
        self.written = float("-inf")

    def begin(self) -> None:
        """Note the start. Raises ConfigError where the file cannot be written."""
        check_metrics_file(self.path)
        self.tell("framefold_run_start_timestamp_seconds", time.time())
        try:
            self._write()
        except OSError as error:
            raise ConfigError(f"--metrics-file {self.path}: cannot be written: {error}") from error

    def end(self, code: int) -> None:
        """Note the end, and how it was."""
        self.tell("framefold_run_end_timestamp_seconds", time.time())
        self.tell("framefold_run_exit_code", code)
        self.renew(every_s=0)

    def found(self, fingerprint: str, what: str, statuses: Mapping[str, int], pending: int) -> None:
        """Take in, before the work begins, what is done already by status, of videos or questions, and how many are left."""
        label = {"error_class": ""} if what == "videos" else {}
        for status, count in statuses.items():
            self.tell(f"framefold_{what}_total", count, fingerprint=fingerprint[:SHOWN], status=status, **label)
        self._pending(fingerprint, pending)

    def videos(self, fingerprint: str, manifest: pa.Table, pending: int) -> None:
        """Take in what became of some videos, rows of `schema.MANIFEST`."""
        outcomes = zip(manifest["status"].to_pylist(), manifest["error_class"].to_pylist(), strict=True)
        for (status, error_class), count in Counter(outcomes).items():
            labels = {"status": status, "error_class": error_class or ""}
            self.tell("framefold_videos_total", count, fingerprint=fingerprint[:SHOWN], **labels)
        rows = zip(manifest["status"].to_pylist(), manifest["bytes"].to_pylist(), strict=True)
        written = sum(size or 0 for status, size in rows if status == "committed")
        self.tell("framefold_written_bytes_total", written, fingerprint=fingerprint[:SHOWN])
        self._stages(fingerprint, manifest, pending)

    def questions(self, fingerprint: str, manifest: pa.Table, pending: int) -> None:
        """Take in what became of some questions, rows of `answer_store.MANIFEST`."""
        for statuses in manifest["statuses"].to_pylist():
            for status, count in statuses:
                self.tell("framefold_questions_total", count, fingerprint=fingerprint[:SHOWN], status=status)
        self._stages(fingerprint, manifest, pending)

    def tell(self, name: str, value: float, **labels: str) -> None:
        """Add to a counter, set a gauge or observe a time; a counter takes nothing for nothing."""
        labels = {"command": self.command, **labels}
        kind = {**SERIES, **RUN}[name].kind
        if kind == "Counter" and not value:
            return
        _record(kind, self.in_file[name].labels(**labels), value)
        if self.on_ray and name in SERIES:
            self.waiting.append((name, value, labels))
            self._tell_ray()

    def renew(self, every_s: float = EVERY_S) -> None:
        """Write the file anew if the last one is so old. That it cannot be written is no reason to stop a night's work."""
        try:
            if time.monotonic() - self.written >= every_s:
                self._write()
        except OSError as error:
            logger.warning("%s: cannot be written: %s", self.path, error)

    def _pending(self, fingerprint: str, pending: int) -> None:
        self.tell("framefold_pending", pending, fingerprint=fingerprint[:SHOWN])
        self.renew()

    def _stages(self, fingerprint: str, manifest: pa.Table, pending: int) -> None:
        for stage, seconds in spent(manifest):
            self.tell("framefold_stage_seconds", seconds, fingerprint=fingerprint[:SHOWN], stage=stage)
        self._pending(fingerprint, pending)

    def _write(self) -> None:
        if self.path is not None:
            prometheus_client.write_to_textfile(self.path, self.registry)
            self.written = time.monotonic()

    def _collector(self, name: str, series: Series) -> Any:
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # the start of the run says it all
        options = {"buckets": BUCKETS} if series.kind == "Histogram" else {}
        labels = ("command", *series.labels)
        return getattr(prometheus_client, series.kind)(name, series.help, labels, registry=self.registry, **options)

    def _tell_ray(self) -> None:
        """Tell Ray what waits, once there is one: jobs start it late, and some never."""
        import ray
        from ray.util import metrics

        if not ray.is_initialized():
            return
        for name, value, labels in self.waiting:
            series = SERIES[name]
            if name not in self.in_ray:
                options = {"boundaries": BUCKETS} if series.kind == "Histogram" else {}
                kind = getattr(metrics, series.kind)
                self.in_ray[name] = kind(name, series.help, tag_keys=("command", *series.labels), **options)
            _record(series.kind, self.in_ray[name], value, labels)
        self.waiting = []


def check_metrics_file(path: str | None) -> None:
    """Raise ConfigError where a metrics file cannot be written, as far as this shows without writing."""
    if path is None:
        return
    target = Path(path).absolute()
    wrong = {
        errno.EISDIR: target.is_dir(),
        errno.ENOENT: not target.parent.exists(),
        errno.ENOTDIR: target.parent.exists() and not target.parent.is_dir(),
        errno.EACCES: target.parent.is_dir() and not os.access(target.parent, os.W_OK | os.X_OK),
    }
    for code in (code for code, applies in wrong.items() if applies):
        raise ConfigError(f"--metrics-file {path}: cannot be written: {os.strerror(code)}")


def _record(kind: str, collector: Any, value: float, *labels: Mapping[str, str]) -> None:
    """Record a value. Any: a collector of either library, which call the same things by the same names."""
    method: Callable[..., None] = getattr(collector, {"Counter": "inc", "Gauge": "set", "Histogram": "observe"}[kind])
    method(value, *labels)


def metered(command: str, path: str | None, runner: str, run: Callable[[Meter], Report]) -> Report:
    """Run a job with a meter that notes how it began and ended, whatever the end."""
    meter = Meter(command, path, on_ray=runner == "ray")
    meter.begin()
    try:
        report = run(meter)
    except BaseException as error:
        meter.end(code_of(error))
        raise
    meter.end(int(report.get("exit_code", DONE)))
    return report
