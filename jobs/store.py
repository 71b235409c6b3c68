"""Look into a token store and care for it: `framefold store ls|stats|show|verify|repair|compact|gc URL`."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import tyro

from jobs.launch import DONE, FAILED, Report, launch, storage_options
from pipeline.care import GRACE_S, compact, gc, repair
from pipeline.errors import ConfigError
from pipeline.filesystem import open_root
from pipeline.index import rows_of
from pipeline.store import TokenStore, fingerprints
from pipeline.verify import verify

SHOWN_TOKENS = 5


@dataclass(frozen=True, kw_only=True)
class StoreJob:
    """Look into a token store and care for it.

    ls: one line per video. stats: counts and bytes. show: one entry, or the spec. verify: check every byte. repair: take out
    what is damaged, so that the next encode brings it back. compact: merge small files. gc: remove files out of use.
    """

    what: tyro.conf.Positional[Literal["ls", "stats", "show", "verify", "repair", "compact", "gc"]]
    """What to do."""
    store: tyro.conf.Positional[str]
    """Root of the token store; any fsspec URL."""
    video: tyro.conf.Positional[str | None] = None
    """For show: the video; without one the encode spec is shown."""
    fingerprint: str | None = None
    """Which entries, by the beginning of their fingerprint; stats and verify take all by default."""
    grace_s: float = GRACE_S
    """For gc: files younger than this stay, in seconds; longer than any unit takes to commit."""
    drop: str | None = None
    """For gc: remove all of this fingerprint, given by its beginning."""
    storage_options: str = "{}"
    """JSON object for fsspec."""

    @property
    def options(self) -> dict[str, Any]:
        """Return the storage options as a mapping."""
        return storage_options(self.storage_options)


def run(job: StoreJob) -> Report:
    """Return what was asked for; `ls` prints its lines before."""
    actions = {"ls": _ls, "stats": _stats, "show": _show, "verify": _verify, "repair": _repair, "compact": _compact, "gc": _gc}
    return actions[job.what](job)


def _ls(job: StoreJob) -> Report:
    store = TokenStore.open(job.store, job.fingerprint, job.options)
    for row in rows_of(store.index.rows):
        note = f"{row['tokens']} tokens" if row["status"] == "committed" else f"{row['error_class']}: {row['error']}"
        sys.stdout.write(f"{row['status']}\t{row['video_id']}\t{note}\t{row['uri']}\n")
    failed = store.failures().num_rows
    return {"fingerprint": store.fingerprint, "committed": store.index.rows.num_rows - failed, "failed": failed}


def _stats(job: StoreJob) -> Report:
    fs, root = open_root(job.store, job.options)
    names = [name for name in fingerprints(fs, root) if name.startswith(job.fingerprint or "")]
    if not names:
        raise ConfigError(f"{job.store}: no token store there (expected specs/<fingerprint>.json)")
    return {"store": job.store, "specs": [TokenStore.open(job.store, name, job.options).stats() for name in names]}


def _show(job: StoreJob) -> Report:
    store = TokenStore.open(job.store, job.fingerprint, job.options)
    if job.video is None:
        return {"fingerprint": store.fingerprint, "spec": store.spec}
    row = store.index.get(job.video)
    if row is None:
        raise ConfigError(f"{job.store}: no video {job.video!r} under fingerprint {store.fingerprint[:12]}")
    if row["status"] == "failed":
        return row
    entry = store.read(job.video)
    tokens = [
        {"frame": int(f), "anchor": int(a), "kind": int(k), "size": float(s), "position": p.tolist()}
        for f, a, k, s, p in zip(entry.frame, entry.anchor, entry.kind, entry.size, entry.position, strict=True)
    ]
    shape = {"shape": list(entry.features.shape), "grid": list(entry.grid), "timestamps_s": list(entry.timestamps_s)}
    return {**row, **shape, "first_tokens": tokens[:SHOWN_TOKENS]}


def _verify(job: StoreJob) -> Report:
    fs, root = open_root(job.store, job.options)
    report = verify(fs, root, job.fingerprint).as_dict()
    return {"store": job.store, **report, "exit_code": DONE if report["ok"] else FAILED}


def _repair(job: StoreJob) -> Report:
    return {"store": job.store, **repair(*open_root(job.store, job.options)).as_dict()}


def _compact(job: StoreJob) -> Report:
    fs, root = open_root(job.store, job.options)
    names = [name for name in fingerprints(fs, root) if name.startswith(job.fingerprint or "")]
    return {"store": job.store, "compacted": {name: compact(TokenStore.open(job.store, name, job.options)) for name in names}}


def _gc(job: StoreJob) -> Report:
    fs, root = open_root(job.store, job.options)
    if job.drop is not None and len([name for name in fingerprints(fs, root) if name.startswith(job.drop)]) != 1:
        raise ConfigError(f"{job.store}: expected --drop to begin exactly one fingerprint, got {job.drop!r}")
    return {"store": job.store, "removed": gc(fs, root, job.grace_s, job.drop)}


def main(args: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    return launch(StoreJob, run, "framefold store", args)


if __name__ == "__main__":
    sys.exit(main())
