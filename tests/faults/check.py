"""What must be true of a store after any fault, once the same command has been run again."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.storage.filesystem import list_files, open_root, read_bytes
from pipeline.store.index import parse_fragment
from pipeline.store.token_store import TokenStore
from pipeline.store.verify import verify
from tests.faults.clips import Clips


@dataclass(frozen=True, kw_only=True)
class Found:
    """Counts of a checked store. All that is wrong is zero in a good one."""

    good: int
    committed: int
    failed: int
    lost: int
    """Good videos that are not committed."""
    strange: int
    """Committed ids that are no good video."""
    doubled: int
    """Ids that readers see more than once, as committed or as failed."""
    again: int
    """Committed rows beyond the first of an id over all fragments: work done twice. Readers see one of them."""
    changed: int
    """Entries that were made from other bytes than the video has."""
    unread: int
    """Files and entries of which a digest does not verify, or that cannot be read."""
    untold: int
    """Files that cannot be used and are not listed, or not with their class."""

    @property
    def ok(self) -> bool:
        """Tell whether nothing is lost, doubled, stale, damaged or untold."""
        return not any((self.lost, self.strange, self.doubled, self.changed, self.unread, self.untold))


def check(url: str, clips: Clips, options: Mapping[str, Any] | None = None) -> Found:
    """Read the whole store and compare it with the corpus."""
    store = TokenStore.open(url, storage_options=options)
    seen = Counter(store.index.rows["video_id"].to_pylist())
    committed = {row["video_id"]: row["source_sha256"] for row in store.index.with_status("committed").to_pylist()}
    failures = {row["video_id"]: row["error_class"] for row in store.failures().to_pylist()}
    report = verify(*open_root(url, options))
    return Found(
        good=len(clips.good),
        committed=len(committed),
        failed=len(failures),
        lost=len(clips.good.keys() - committed.keys()),
        strange=len(committed.keys() - clips.good.keys()),
        doubled=sum(count - 1 for count in seen.values()),
        again=_again(store),
        changed=sum(clips.good.get(name) != digest for name, digest in committed.items()),
        unread=len(report.problems) + sum(not _reads(store, name) for name in committed),
        untold=sum(failures.get(name) != code for name, code in clips.bad.items()) + len(failures.keys() - clips.bad.keys()),
    )


def _again(store: TokenStore) -> int:
    listed: Counter[str] = Counter()
    for path in list_files(store.fs, store.index.folder, ".parquet"):
        rows = parse_fragment(path, read_bytes(store.fs, path)).to_pylist()
        listed.update(row["video_id"] for row in rows if row["status"] == "committed")
    return sum(count - 1 for count in listed.values())


def _reads(store: TokenStore, name: str) -> bool:
    entry = store.read(name)
    return entry.video_id == name and len(entry.features) > 0
