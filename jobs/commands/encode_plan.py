"""The plan of `framefold encode`: settings are checked, the corpus is compared with the store, nothing is written."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from jobs.runtime.cluster import check_address, check_cluster, placed
from jobs.runtime.launch import DONE, Report
from jobs.runtime.logs import say_table
from jobs.runtime.plan_text import basis, by_class, size
from pipeline.corpus.listing import read_corpus
from pipeline.corpus.segments import Durations, cut_known, outdated
from pipeline.encode.expected import expected_entry
from pipeline.encode.stage import check_reducer, encode_spec, parse_reducer
from pipeline.errors import video_codes
from pipeline.storage.preflight import check_reachable
from pipeline.store.dedup import not_adoptable
from pipeline.store.token_store import TokenStore

if TYPE_CHECKING:
    from jobs.commands.encode import EncodeJob
    from pipeline.models.checkpoint import Checkpoint


@dataclass(frozen=True, kw_only=True)
class EncodePlan:
    """The settings of a job, checked, and which of its videos are to be encoded."""

    job: "EncodeJob"
    """Device and dtype are decided."""
    checkpoint: "Checkpoint"
    store: TokenStore
    """Its spec need not be stored yet."""
    listed: pa.Table
    """Rows of `schema.CORPUS`: whole videos."""
    corpus: pa.Table
    """Rows of `schema.CORPUS`: whole videos, or the segments of those whose length is known."""
    unmeasured: pa.Table
    """Rows of `schema.CORPUS`: videos that are to be cut into segments and whose length is not known."""
    withdrawn: pa.Table
    """Rows of `schema.ENCODED`: failures that replace entries of earlier states of these videos."""
    missing: pa.Table
    """Rows of `corpus` that the store does not hold, with `--identity content` also those that it holds under another id."""

    @property
    def side_px(self) -> int:
        """Return the side of a decoded frame."""
        return self.checkpoint.preprocessing().side_px

    @property
    def has_work(self) -> bool:
        """Return whether videos are to be measured or encoded."""
        return bool(self.missing.num_rows or self.unmeasured.num_rows)


def plan(job: "EncodeJob") -> EncodePlan:
    """Return what a job is going to do. Raises ConfigError for a wrong setting."""
    checkpoint = checked(job)
    listed = read_corpus(job.corpus, job.options)
    config = placed(job.encode, job.cluster, job.gpus_per_encoder, "--gpus-per-encoder")
    store = TokenStore.preview(job.store, encode_spec(config, job.decode, checkpoint), job.options)
    corpus, unmeasured = taken(job, listed)
    found = compared(
        EncodePlan(
            job=replace(job, encode=config),
            checkpoint=checkpoint,
            store=store,
            listed=listed,
            corpus=corpus,
            unmeasured=unmeasured,
            withdrawn=corpus.slice(0, 0),
            missing=corpus,
        )
    )
    if found.has_work:
        check_address(job.cluster)
    return found


def checked(job: "EncodeJob") -> "Checkpoint":
    """Return the checkpoint of a job. Raises ConfigError where reducer, storage, model and tower do not fit together."""
    from pipeline.models.checkpoint import Checkpoint

    parse_reducer(job.encode.reducer)
    check_reachable([job.corpus, job.store], job.options)
    checkpoint = Checkpoint.open(job.encode.model, job.encode.revision)
    checkpoint.check_frames()
    check_reducer(job.encode.reducer, job.decode.frames, checkpoint)
    checkpoint.check_tower_weights()
    return checkpoint


def taken(job: "EncodeJob", listed: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Return a corpus as the job takes it, whole videos or known segments, and the videos that are to be measured first."""
    if job.segments is None:
        return listed, listed.slice(0, 0)
    return cut_known(listed, job.segments, Durations(job.store, job.options))


def compared(found: EncodePlan) -> EncodePlan:
    """Return a plan with what its store lacks of its corpus, and what the store holds of replaced videos."""
    index = found.store.index
    return replace(
        found,
        withdrawn=outdated(index.with_status("committed"), found.corpus),
        missing=index.missing(found.corpus, video_codes(found.job.retry)),
    )


def preview(found: EncodePlan) -> Report:
    """Return a plan as a report. With `--identity content` files are read and hashed, as a run does.

    Raises ConfigError where the cluster of the job does not answer or has too few GPUs.
    """
    job, store, missing = found.job, found.store, found.missing
    if found.has_work:
        check_cluster(job.cluster, job.encoders * job.gpus_per_encoder)
    todo = not_adoptable(store, missing, job.options) if job.identity == "content" else missing
    entry = expected_entry(job.encode, job.decode.frames, found.checkpoint, store.index.with_status("committed"))
    return {
        "job": "encode",
        "dry_run": True,
        "store": job.store,
        "fingerprint": store.fingerprint,
        "reducer": job.encode.reducer,
        "videos": found.corpus.num_rows + found.unmeasured.num_rows,
        **_states(found),
        "to_encode": todo.num_rows,
        "same_content": missing.num_rows - todo.num_rows,
        "withdrawn": found.withdrawn.num_rows,
        "unmeasured": found.unmeasured.num_rows,
        "expected": entry.report(todo.num_rows),
        "exit_code": DONE,
    }


def _states(found: EncodePlan) -> Report:
    """Return counts of the corpus by what the index says of each video now."""
    rows = found.store.index.rows
    rows = rows.filter(pc.is_in(rows["video_id"], found.corpus["video_id"].combine_chunks()))
    is_missing = pc.is_in(rows["video_id"], found.missing["video_id"].combine_chunks())
    kept, again = rows.filter(pc.invert(is_missing)), rows.filter(is_missing)
    kept_failed, again_failed = (_failed_by_class(some) for some in (kept, again))
    return {
        "committed": kept.num_rows - sum(kept_failed.values()),
        "failed": sum(kept_failed.values()),
        "failed_by_class": kept_failed,
        "new": found.missing.num_rows - again.num_rows,
        "changed": again.num_rows - sum(again_failed.values()),
        "tried_again_by_class": again_failed,
    }


def _failed_by_class(rows: pa.Table) -> dict[str, int]:
    """Return how many rows of an index failed, by class."""
    failed = rows.filter(pc.equal(rows["status"], "failed"))
    return dict(sorted(Counter(failed["error_class"].to_pylist()).items()))


def show(report: Report) -> Report:
    """Print the report of `preview` as a table on stderr and return it."""
    expected, again = report["expected"], report["tried_again_by_class"]
    parts = f"{report['new']} new, {report['changed']} changed, {sum(again.values())} failed before"
    rows = [
        ("store", f"{report['store']}, fingerprint {report['fingerprint'][:12]}, reducer {report['reducer']}"),
        ("videos or segments", str(report["videos"])),
        ("committed", str(report["committed"])),
        ("failed", by_class(report["failed_by_class"], "; not tried again without --retry CLASS")),
        ("to encode", f"{report['to_encode']}; missing in the store: {parts}"),
        ("tried again", by_class(again)),
        ("same content", f"{report['same_content']} are listed from an entry of the same bytes"),
        ("withdrawn", f"{report['withdrawn']} entries of replaced videos"),
        ("not measured", f"{report['unmeasured']} videos, to be cut into segments; not in the numbers below"),
        ("per video", f"{expected['tokens_per_video']:g} tokens, {size(expected['bytes_per_video'])} ({basis(expected)})"),
        ("in total", f"{expected['tokens']} tokens, {size(expected['bytes'])}"),
    ]
    always = {"store", "videos or segments", "committed", "to encode", "per video", "in total"}
    shown = [(name, text) for name, text in rows if name in always or not text.startswith("0")]
    say_table("encode, dry run: nothing is written", shown, **report)
    return report
