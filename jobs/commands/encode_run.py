"""`framefold encode` at work: decode, encode and commit what a plan names, and report."""

import logging
import threading
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.commands.encode_plan import EncodePlan, compared
from jobs.runtime.cluster import blocks, check_gpus, cluster, share, source, through, turn
from jobs.runtime.launch import Report, exit_code, stop_on_signal
from jobs.runtime.progress import Progress
from jobs.runtime.telemetry import Meter
from jobs.runtime.timing import timed
from pipeline.corpus.segments import Durations, cut
from pipeline.decode.stage import Decode, Measure
from pipeline.encode.local_runner import encode_units
from pipeline.encode.stage import Encode
from pipeline.errors import video_codes
from pipeline.store.dedup import adopt
from pipeline.store.token_store import Commit, TokenStore

logger = logging.getLogger(__name__)
SHOWN = 10
STEP = 8
"""Videos that a decoder takes at a time: few, so that a small corpus keeps all decoders busy."""
DECODE, ENCODE, COMMIT = timed(Decode, "decode"), timed(Encode, "encode"), timed(Commit, "commit")


def execute(found: EncodePlan, meter: Meter) -> tuple[pa.Table, Report]:
    """Carry out a plan. Returns the videos as the job took them, whole or in segments, and the report of the run."""
    found.store.write_spec()
    found = with_segments(found)
    withdraw(found.store, found.withdrawn)
    todo = to_encode(found)
    report = encoded(found, todo, meter)
    return found.corpus, {**report, "same_content": found.missing.num_rows - todo.num_rows}


def with_segments(found: EncodePlan) -> EncodePlan:
    """Return the plan with every video cut into segments; lengths that are not known are measured and stored."""
    job = found.job
    if job.segments is None:
        return found
    lengths = Durations(job.store, job.options)
    corpus = cut(found.listed, job.segments, lengths, lambda videos: measured(found, videos))
    return compared(replace(found, corpus=corpus, unmeasured=found.unmeasured.slice(0, 0)))


def measured(found: EncodePlan, videos: pa.Table) -> Iterator[pa.Table]:
    """Yield rows of `segments.DURATIONS`, measured where the decoders run."""
    job = found.job
    logger.info("%d videos to measure", videos.num_rows)
    arguments = (job.decode, found.side_px, job.options)
    if job.cluster.runner == "local":
        with Measure(*arguments) as measure:
            yield from map(measure, blocks(videos, STEP))
        return
    with cluster(job.cluster) as cpus, turn(job.cluster):
        each = share(cpus, job.decoders)
        lengths = through(source(blocks(videos, STEP)), Measure, arguments, workers=job.decoders, cpus=each, batch=STEP)
        yield from lengths.iter_batches(batch_format="pyarrow", batch_size=None, prefetch_batches=0)


def withdraw(store: TokenStore, gone: pa.Table) -> None:
    """Commit failures in the place of entries of earlier states of their videos."""
    if gone.num_rows:
        logger.info("%d entries of replaced videos are withdrawn, first %s", gone.num_rows, gone["video_id"][0].as_py())
        store.commit(gone)


def to_encode(found: EncodePlan) -> pa.Table:
    """Return the videos that are to be encoded; with `--identity content` the others of the same bytes are listed now."""
    job, missing = found.job, found.missing
    todo = adopt(found.store, missing, job.options) if job.identity == "content" else missing
    what = "videos" if job.segments is None else f"segments of {found.listed.num_rows} videos"
    logger.info("%d %s, %d to encode with %s", found.corpus.num_rows, what, todo.num_rows, job.encode.reducer)
    return todo


def encoded(found: EncodePlan, todo: pa.Table, meter: Meter) -> Report:
    """Encode videos until all are committed or a signal comes, and return the report."""
    store, progress, moved = found.store, Progress("encode", todo.num_rows), Moved()
    same = found.missing.num_rows - todo.num_rows
    known = {"skipped": found.corpus.num_rows - found.missing.num_rows, "same_content": same}
    meter.found(store.fingerprint, "videos", known, todo.num_rows)
    stopped = False
    if todo.num_rows:
        with stop_on_signal() as stop:
            with closing(_manifests(found, todo, stop)) as manifests:
                for manifest in manifests:
                    progress.add(Counter(manifest["status"].to_pylist()))
                    moved.add(manifest)
                    meter.videos(store.fingerprint, manifest, progress.total - progress.done)
            stopped = stop.is_set() and progress.done < todo.num_rows
    store.refresh()
    report = _report(found, progress, stopped)
    return report | (moved.report() if found.job.decode.policy == "keyframe" else {})


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


def _manifests(found: EncodePlan, todo: pa.Table, stop: threading.Event) -> Generator[pa.Table, None, None]:
    """Yield rows of `schema.MANIFEST` as units are committed."""
    runner = _locally if found.job.cluster.runner == "local" else _on_ray
    return runner(found, todo, stop)


def _locally(found: EncodePlan, todo: pa.Table, stop: threading.Event) -> Generator[pa.Table, None, None]:
    job = found.job
    yield from encode_units(
        todo,
        lambda: DECODE(job.decode, found.side_px, job.options),
        ENCODE(job.encode),
        COMMIT(job.store, found.store.spec, job.options),
        decoders=job.decoders,
        videos_per_step=min(STEP, job.encode.clips_together, job.videos_per_unit),
        videos_at_once=min(job.encode.clips_at_once, job.videos_per_unit),
        videos_per_unit=job.videos_per_unit,
        stop=stop,
    )


def _on_ray(found: EncodePlan, todo: pa.Table, stop: threading.Event) -> Generator[pa.Table, None, None]:
    job = found.job
    with cluster(job.cluster) as cpus, turn(job.cluster, stop) as waited:
        check_gpus(job.encoders * job.gpus_per_encoder)
        if waited:  # another job may have encoded the same videos meanwhile
            found.store.refresh()
            todo = found.store.missing(todo, video_codes(job.retry))
            logger.info("%d videos are left to encode", todo.num_rows)
        if stop.is_set() or not todo.num_rows:
            return
        commits = _stages(found, todo, share(cpus, job.decoders + job.encoders + 1))
        for manifest in commits.iter_batches(batch_format="pyarrow", batch_size=None, prefetch_batches=0):
            yield manifest
            if stop.is_set():
                return


def _stages(found: EncodePlan, todo: pa.Table, cpus: float) -> Any:
    """Return the data set of manifests behind decoders, encoders and the committer. Any: Ray's data sets are untyped here."""
    job, unit = found.job, found.job.videos_per_unit
    step, at_once = min(STEP, job.encode.clips_together, unit), min(job.encode.clips_at_once, unit)
    decode, write = (job.decode, found.side_px, job.options), (job.store, found.store.spec, job.options)
    clips = through(source(blocks(todo, step)), DECODE, decode, workers=job.decoders, cpus=cpus, batch=step)
    gpus = job.gpus_per_encoder
    tokens = through(clips, ENCODE, (job.encode,), workers=job.encoders, cpus=cpus, gpus=gpus, batch=at_once)
    return through(tokens, COMMIT, write, workers=1, cpus=cpus / 2, batch=unit)


def _report(found: EncodePlan, progress: Progress, stopped: bool) -> Report:
    """Return the state of this corpus in the store now, and what this run did."""
    job, store, corpus = found.job, found.store, found.corpus
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
