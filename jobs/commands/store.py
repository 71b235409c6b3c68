"""List, check and maintain a token store: `framefold store ls|stats|show|verify|repair|compact|gc|retry|export URL`."""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from jobs.runtime.launch import DONE, FAILED, Report, launch, storage_options
from pipeline.errors import ConfigError, video_codes
from pipeline.names import one_line
from pipeline.storage.filesystem import open_root
from pipeline.storage.preflight import check_reachable
from pipeline.store.entries import Entry
from pipeline.store.export import export
from pipeline.store.index import rows_of
from pipeline.store.maintenance import GRACE_S, clear, compact, gc, repair
from pipeline.store.resolve import find_video
from pipeline.store.specs import fingerprints, matching_fingerprints
from pipeline.store.token_store import TokenStore
from pipeline.store.verify import verify

SHOWN_TOKENS = 5
BUDGETS = (32, 64, 128, 256, 512)
"""Points of the coverage curve."""
NEXT = "run framefold encode again: it brings back what is missing, and only that"


@dataclass(frozen=True, kw_only=True)
class StoreJob:
    """List, check and maintain a token store.

    ls: one line per video. stats: counts and bytes. show: one entry, or the spec. verify: check every byte. repair: withdraw
    damaged entries, which the next encode restores. compact: merge small files. gc: remove unused files. retry: clear
    failures, which the next encode tries again; until then ls and stats list them as cleared. export: write files for other
    programs.
    """

    what: tyro.conf.Positional[Literal["ls", "stats", "show", "verify", "repair", "compact", "gc", "retry", "export"]]
    """What to do."""
    store: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="STORE")]
    """Root of the token store; any fsspec URL."""
    video: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[VIDEO]")] = None
    """For show: the video, by its id, path or the name of its file; without one the encode spec is shown."""
    fingerprint: str | None = None
    """Which entries, by the beginning of their fingerprint; ls, stats, show, verify, compact and retry take all by default."""
    reducer: str | None = None
    """Which entries, by their reducer, e.g. "nest(keep=256)", or its name alone."""
    grace_s: float = GRACE_S
    """For gc: files younger than this stay, in seconds; longer than any unit takes to commit."""
    drop: str | None = None
    """For gc: remove all of this fingerprint, given by its beginning."""
    classes: Annotated[str, tyro.conf.arg(name="class")] = ""
    """For retry: classes of failure, e.g. TIMEOUT,CRASHED."""
    out: str | None = None
    """For export: where to write to; any fsspec URL."""
    format: Literal["parquet", "safetensors", "npz"] = "parquet"
    """For export: Parquet files of many videos with lists of numbers, or a file of arrays for each video."""
    videos_per_file: int = 256
    """For export to Parquet."""
    storage_options: str = "{}"
    """JSON object for fsspec."""

    def __post_init__(self) -> None:
        if not self.grace_s >= 0:
            raise ConfigError(f"grace_s must not be negative, got {self.grace_s}")
        if self.videos_per_file < 1:
            raise ConfigError(f"videos_per_file must be at least 1, got {self.videos_per_file}")

    @property
    def options(self) -> dict[str, Any]:
        """Return the storage options as a mapping."""
        return storage_options(self.storage_options)


def run(job: StoreJob) -> Report:
    """Return what was asked for; `ls` prints its lines before."""
    actions = {
        "ls": _ls, "stats": _stats, "show": _show, "verify": _verify, "repair": _repair, "compact": _compact, "gc": _gc,
        "retry": _retry, "export": _export,
    }  # fmt: skip
    check_reachable([job.store, job.out], job.options)
    return actions[job.what](job)


def _ls(job: StoreJob) -> Report:
    stores = list(_stores(job))
    counts = {store.fingerprint: _listed(store, with_fingerprint=len(stores) > 1) for store in stores}
    if len(stores) == 1:
        return {"fingerprint": stores[0].fingerprint, **counts[stores[0].fingerprint]}
    return {"store": job.store, "fingerprints": [{"fingerprint": name, **found} for name, found in counts.items()]}


def _listed(store: TokenStore, *, with_fingerprint: bool) -> Counter[str]:
    """Print a line per video, with fingerprint and reducer in the last column; returns how many of each status."""
    counts = Counter(committed=0, failed=0)
    last = f"\t{store.fingerprint[:12]} {store.spec['reducer']['name']}" if with_fingerprint else ""
    for row in rows_of(store.index.rows):
        status = "cleared" if row["status"] == "failed" and row["source_hint"] is None else row["status"]
        note = f"{row['tokens']} tokens" if status == "committed" else f"{row['error_class']}: {row['error']}"
        sys.stdout.write(f"{status}\t{one_line(row['video_id'])}\t{one_line(note)}\t{one_line(row['uri'])}{last}\n")
        counts[status] += 1
    return counts


def _stats(job: StoreJob) -> Report:
    return {"store": job.store, "specs": [store.stats() for store in _stores(job)]}


def _stores(job: StoreJob) -> Iterator[TokenStore]:
    """Yield the entries of each fingerprint that is meant. Raises ConfigError where there is none."""
    fs, root = open_root(job.store, job.options)
    names = matching_fingerprints(fs, root, job.fingerprint, job.reducer)
    if not names:  # of several: names those there are
        TokenStore.open(job.store, job.fingerprint, job.options, job.reducer)
    return (TokenStore.open(job.store, name, job.options) for name in names)


def _show(job: StoreJob) -> Report:
    stores = list(_stores(job))
    if len(stores) == 1:
        return _shown(job, stores[0])
    shown = [{"fingerprint": store.fingerprint, **_shown(job, store)} for store in _holding(job, stores)]
    return {"store": job.store, "fingerprints": shown}


def _holding(job: StoreJob, stores: Sequence[TokenStore]) -> list[TokenStore]:
    """Return the stores that hold the video that is shown. Raises ConfigError where none does."""
    found = []
    for number, store in enumerate(stores):
        try:
            if job.video is not None:
                find_video(job.video, store.index)
            found.append(store)
        except ConfigError:
            if not found and number == len(stores) - 1:
                raise
    return found


def _shown(job: StoreJob, store: TokenStore) -> Report:
    """Return an entry, or the encode spec where no video is named."""
    if job.video is None:
        return {"fingerprint": store.fingerprint, "spec": store.spec}
    row = store.index.get(str(find_video(job.video, store.index)["video_id"])) or {}
    if row["status"] == "failed":
        return row
    entry = store.read(row["video_id"])
    tokens = [
        {"frame": int(f), "anchor": int(a), "kind": int(k), "size": float(s), "position": p.tolist()}
        for f, a, k, s, p in zip(entry.frame, entry.anchor, entry.kind, entry.size, entry.position, strict=True)
    ]
    shape = {"shape": list(entry.features.shape), "grid": list(entry.grid), "timestamps_s": list(entry.timestamps_s)}
    return {**row, **shape, "first_tokens": tokens[:SHOWN_TOKENS], **_coverage(entry)}


def _coverage(entry: Entry) -> dict[str, Any]:
    """Return, for entries of nest, the share of the video that its first so many patches explain: low is a busy video."""
    if entry.order is None:
        return {}
    ranked = entry.order.rank >= 0
    gains = entry.order.gain[ranked][entry.order.rank[ranked].argsort()].cumsum()
    return {"coverage": {str(budget): round(float(gains[budget - 1]), 4) for budget in BUDGETS if budget <= len(gains)}}


def _verify(job: StoreJob) -> Report:
    fs, root = open_root(job.store, job.options)
    of_reducer = job.reducer and TokenStore.open(job.store, job.fingerprint, job.options, job.reducer).fingerprint
    report = verify(fs, root, of_reducer or job.fingerprint).as_dict()
    return {"store": job.store, **report, "exit_code": DONE if report["ok"] else FAILED}


def _opened(job: StoreJob) -> tuple[Any, str]:
    """Return file system and root of a store, in whatever state. Raises ConfigError where nothing of one is there."""
    fs, root = open_root(job.store, job.options)
    if not fingerprints(fs, root) and not any(fs.exists(f"{root}/{part}") for part in ("index", "tokens")):
        raise ConfigError(f"{job.store}: no token store there (expected specs/<fingerprint>.json)")
    return fs, root


def _repair(job: StoreJob) -> Report:
    report = repair(*_opened(job)).as_dict()
    return {"store": job.store, **report, "next": NEXT if any(report.values()) else "nothing to do"}


def _compact(job: StoreJob) -> Report:
    return {"store": job.store, "compacted": {store.fingerprint: compact(store) for store in _stores(job)}}


def _retry(job: StoreJob) -> Report:
    classes = video_codes([job.classes])
    if not classes:
        raise ConfigError("retry needs --class, e.g. --class TIMEOUT,CRASHED")
    cleared = {store.fingerprint: clear(store, classes) for store in _stores(job)}
    return {"store": job.store, "cleared": cleared, "next": NEXT}


def _export(job: StoreJob) -> Report:
    if job.out is None:
        raise ConfigError("export needs --out, the folder to write to")
    store = TokenStore.open(job.store, job.fingerprint, job.options, job.reducer)
    if open_root(job.out, job.options)[1] == store.root:
        raise ConfigError(f"--out must differ from STORE (a subdirectory of it is fine), got {job.out} for both")
    report = export(store, job.out, job.format, job.videos_per_file, job.options)
    return {"store": job.store, "out": job.out, **report, "exit_code": FAILED if report["damaged"] else DONE}


def _gc(job: StoreJob) -> Report:
    fs, root = _opened(job)
    if job.drop is not None and len([name for name in fingerprints(fs, root) if name.startswith(job.drop)]) != 1:
        raise ConfigError(f"{job.store}: expected --drop to begin exactly one fingerprint, got {job.drop!r}")
    return {"store": job.store, "removed": gc(fs, root, job.grace_s, job.drop)}


def main(args: Sequence[str] | None = None) -> int:
    """Run from the command line. Help is that of all verbs, also behind one: tyro would leave the verb out of its usage."""
    given = list(sys.argv[1:] if args is None else args)
    return launch(StoreJob, run, "framefold store", ["--help"] if {"-h", "--help"} & set(given) else given)


if __name__ == "__main__":
    sys.exit(main())
