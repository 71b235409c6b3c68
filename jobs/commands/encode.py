"""Encode a corpus: `framefold encode`, or `ray job submit -- python -m jobs.encode`. Run it twice, it works once."""

import logging
import threading
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import tyro

from jobs.runtime.cluster import ClusterConfig, blocks, check_gpus, check_share, cluster, placed, share, source, through, turn
from jobs.runtime.launch import Report, exit_code, launch, stop_on_signal, storage_options
from jobs.runtime.progress import Progress
from jobs.runtime.telemetry import Meter, metered
from jobs.runtime.timing import timed
from pipeline.corpus.listing import read_corpus
from pipeline.corpus.segments import Durations, check_seconds, cut, outdated
from pipeline.decode.config import DecodeConfig
from pipeline.decode.stage import Decode, Measure
from pipeline.encode.local_runner import encode_units
from pipeline.encode.stage import Encode, EncodeConfig, check_reducer, encode_spec, parse_reducer
from pipeline.errors import ConfigError, check_at_least_one, video_codes
from pipeline.storage.preflight import check_reachable
from pipeline.store.dedup import adopt
from pipeline.store.token_store import Commit, TokenStore

logger = logging.getLogger(__name__)
SHOWN = 10
STEP = 8
"""Videos that a decoder takes at a time: few, so that a small corpus keeps all decoders busy."""
DECODE, ENCODE, COMMIT = timed(Decode, "decode"), timed(Encode, "encode"), timed(Commit, "commit")


@dataclass(frozen=True, kw_only=True)
class EncodeJob:
    """Encode every video of a corpus that the token store does not hold yet."""

    corpus: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CORPUS")]
    """Directory, glob or manifest (.parquet, .csv, .jsonl with video_id, uri); any fsspec URL."""
    store: str
    """Root of the token store; any fsspec URL."""
    encode: EncodeConfig
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    decoders: int = 1
    """Decoding actors, each with a child process and a CPU."""
    encoders: int = 1
    """Encoding actors."""
    gpus_per_encoder: float = 0.0
    """GPUs of each encoder; 0 encodes on the CPU, 0.5 lets two share a GPU."""
    segments: float | None = None
    """Cut each video into segments of so many seconds; each is an entry, `name#t=start,end`."""
    videos_per_unit: int = 64
    """Videos that are committed together: what a crash may cost, and the number of entries in a shard."""
    retry: tuple[str, ...] = ()
    """Classes of failure to try again, e.g. TIMEOUT CRASHED."""
    identity: Literal["name", "content"] = "name"
    """name: encode videos with a new id, or with another size, time or ETag. content: hash such a video first, and reuse an
    entry of the same bytes under any id, for renamed or copied files."""
    max_failed: int = 0
    """Exit with 1 if more videos of the corpus than this have failed."""
    metrics_file: str | None = None
    """Write metrics for Prometheus to this file, on the driver's machine and renewed as it runs; node_exporter reads *.prom."""
    storage_options: str = "{}"
    """JSON object for fsspec, e.g. '{"endpoint_url": "http://127.0.0.1:9000"}'; used for the corpus and the store."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "decoders", "encoders", "videos_per_unit")
        if self.segments is not None:
            check_seconds(self.segments)
        if self.segments is not None and self.identity == "content":
            raise ConfigError("--identity content cannot be combined with --segments: use --identity name")
        if self.max_failed < 0:
            raise ConfigError(f"max_failed must not be negative, got {self.max_failed}")
        check_share("gpus_per_encoder", self.gpus_per_encoder)
        video_codes(self.retry)

    @property
    def options(self) -> dict[str, Any]:
        """Return the storage options as a mapping."""
        return storage_options(self.storage_options)


def run(job: EncodeJob) -> Report:
    """Decode, encode, commit. Every video ends in the store with its tokens, or in the index with its failure."""
    return metered("encode", job.metrics_file, job.cluster.runner, lambda meter: encoded(job, meter)[1])


def encoded(job: EncodeJob, meter: Meter) -> tuple[pa.Table, Report]:
    """Return the videos as the job took them, whole or in segments, and the report of `run`."""
    from pipeline.models.checkpoint import Checkpoint

    parse_reducer(job.encode.reducer)
    check_reachable([job.corpus, job.store], job.options)
    checkpoint = Checkpoint.open(job.encode.model, job.encode.revision)
    checkpoint.check_frames()
    check_reducer(job.encode.reducer, job.decode.frames, checkpoint)
    listed = read_corpus(job.corpus, job.options)
    config = placed(job.encode, job.cluster, job.gpus_per_encoder, "--gpus-per-encoder")
    spec = encode_spec(config, job.decode, checkpoint)
    store = TokenStore.create(job.store, spec, job.options)
    corpus = in_segments(job, listed, checkpoint.preprocessing().side_px)
    _withdraw(store, outdated(store.index.with_status("committed"), corpus))
    missing = store.missing(corpus, video_codes(job.retry))
    todo = adopt(store, missing, job.options) if job.identity == "content" else missing
    what = "videos" if job.segments is None else f"segments of {listed.num_rows} videos"
    logger.info("%d %s, %d to encode with %s", corpus.num_rows, what, todo.num_rows, config.reducer)
    progress = Progress("encode", todo.num_rows)
    known = {"skipped": corpus.num_rows - missing.num_rows, "same_content": missing.num_rows - todo.num_rows}
    meter.found(store.fingerprint, "videos", known, todo.num_rows)
    stopped = False
    moved = Moved()
    if todo.num_rows:
        with stop_on_signal() as stop:
            runner = _locally if job.cluster.runner == "local" else _on_ray
            arguments = (replace(job, encode=config), todo, spec, checkpoint.preprocessing().side_px, stop)
            with closing(runner(*arguments)) as manifests:
                for manifest in manifests:
                    progress.add(Counter(manifest["status"].to_pylist()))
                    moved.add(manifest)
                    meter.videos(store.fingerprint, manifest, progress.total - progress.done)
            stopped = stop.is_set() and progress.done < todo.num_rows
    store.refresh()
    report = _report(job, store, corpus, progress, stopped)
    report |= moved.report() if job.decode.policy == "keyframe" else {}
    return corpus, {**report, "same_content": missing.num_rows - todo.num_rows}


class Moved:
    """How far keyframe sampling moved frames in this run: the largest distance of each video."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def add(self, manifest: pa.Table) -> None:
        """Take in rows of `schema.MANIFEST`."""
        self.seconds += [seconds for seconds in manifest["displaced_s"].to_pylist() if seconds is not None]

    def report(self) -> Report:
        """Return the mean and the maximum over the videos of this run."""
        mean = sum(self.seconds) / max(len(self.seconds), 1)
        return {"frames_moved_s": {"mean": round(mean, 3), "max": round(max(self.seconds, default=0.0), 3)}}


def _withdraw(store: TokenStore, gone: pa.Table) -> None:
    """Commit failures in the place of entries that no video stands for any more."""
    if gone.num_rows:
        logger.info("%d entries of replaced videos are withdrawn, first %s", gone.num_rows, gone["video_id"][0].as_py())
        store.commit(gone)


def in_segments(job: EncodeJob, corpus: pa.Table, side_px: int) -> pa.Table:
    """Return the videos of a corpus as the job takes them: whole, or the segments of each."""
    if job.segments is None:
        return corpus
    return cut(corpus, job.segments, Durations(job.store, job.options), lambda videos: _measured(job, videos, side_px))


def _measured(job: EncodeJob, videos: pa.Table, side_px: int) -> Iterator[pa.Table]:
    """Yield rows of `segments.DURATIONS`, where the decoders run."""
    logger.info("%d videos to measure", videos.num_rows)
    if job.cluster.runner == "local":
        with Measure(job.decode, side_px, job.options) as measure:
            yield from map(measure, blocks(videos, STEP))
        return
    with cluster(job.cluster) as cpus, turn(job.cluster):
        arguments = (job.decode, side_px, job.options)
        each = share(cpus, job.decoders)
        lengths = through(source(blocks(videos, STEP)), Measure, arguments, workers=job.decoders, cpus=each, batch=STEP)
        yield from lengths.iter_batches(batch_format="pyarrow", batch_size=None, prefetch_batches=0)


def _locally(
    job: EncodeJob, todo: pa.Table, spec: dict[str, Any], side_px: int, stop: threading.Event
) -> Generator[pa.Table, None, None]:
    yield from encode_units(
        todo,
        lambda: DECODE(job.decode, side_px, job.options),
        ENCODE(job.encode),
        COMMIT(job.store, spec, job.options),
        decoders=job.decoders,
        videos_per_step=min(STEP, job.encode.clips_together, job.videos_per_unit),
        videos_at_once=min(job.encode.clips_at_once, job.videos_per_unit),
        videos_per_unit=job.videos_per_unit,
        stop=stop,
    )


def _on_ray(
    job: EncodeJob, todo: pa.Table, spec: dict[str, Any], side_px: int, stop: threading.Event
) -> Generator[pa.Table, None, None]:
    step = min(STEP, job.encode.clips_together, job.videos_per_unit)
    with cluster(job.cluster) as cpus, turn(job.cluster, stop) as waited:
        check_gpus(job.encoders * job.gpus_per_encoder)
        if waited:  # perhaps for the same job
            todo = TokenStore.create(job.store, spec, job.options).missing(todo, video_codes(job.retry))
            logger.info("%d videos are left to encode", todo.num_rows)
        if stop.is_set() or not todo.num_rows:
            return
        each = share(cpus, job.decoders + job.encoders + 1)
        videos = source(blocks(todo, step))
        clips = through(videos, DECODE, (job.decode, side_px, job.options), workers=job.decoders, cpus=each, batch=step)
        gpus = job.gpus_per_encoder
        unit = job.videos_per_unit
        at_once = min(job.encode.clips_at_once, unit)
        tokens = through(clips, ENCODE, (job.encode,), workers=job.encoders, cpus=each, gpus=gpus, batch=at_once)
        commits = through(tokens, COMMIT, (job.store, spec, job.options), workers=1, cpus=each / 2, batch=unit)
        for manifest in commits.iter_batches(batch_format="pyarrow", batch_size=None, prefetch_batches=0):
            yield manifest
            if stop.is_set():
                return


def _report(job: EncodeJob, store: TokenStore, corpus: pa.Table, progress: Progress, stopped: bool) -> Report:
    """Return what is true of this corpus now, and what this run did."""
    ids = corpus["video_id"]
    rows = store.index.rows.filter(pc.is_in(store.index.rows["video_id"], ids.combine_chunks()))
    failed = rows.filter(pc.equal(rows["status"], "failed"))
    committed = rows.filter(pc.equal(rows["status"], "committed"))
    first = failed.select(["video_id", "error_class", "error"]).slice(0, SHOWN).to_pylist()
    too_many = failed.num_rows > job.max_failed
    count = max(committed.num_rows, 1)
    return {
        "job": "encode",
        "store": job.store,
        "fingerprint": store.fingerprint,
        "reducer": job.encode.reducer,
        "videos": corpus.num_rows,
        "committed": committed.num_rows,
        "failed": failed.num_rows,
        "failed_by_class": dict(sorted(Counter(failed["error_class"].to_pylist()).items())),
        "first_failed": first,
        "left": corpus.num_rows - committed.num_rows - failed.num_rows,
        "this_run": progress.report(),
        "videos_per_s": round(progress.per_s, 3),
        "tokens_per_video": round((pc.sum(committed["tokens"]).as_py() or 0) / count, 2),
        "bytes_per_video": round((pc.sum(committed["payload_bytes"]).as_py() or 0) / count),
        "stopped": stopped,
        "exit_code": exit_code(stopped=stopped, failed=too_many),
    }


def main(args: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    return launch(EncodeJob, run, "framefold encode", args)
