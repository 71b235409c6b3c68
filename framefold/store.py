"""The token store as a read-only mapping of video ids to entries."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pipeline.errors import ConfigError
from pipeline.store.entries import Entry
from pipeline.store.token_store import TokenStore as Stored


class TokenStore(Mapping[str, Entry]):
    """The entries of one fingerprint, by video id; built with `open`.

    `len`, `in` and iteration ask the index in memory, `store[video_id]` reads one entry. Videos that failed are not in it.
    """

    def __init__(self, stored: Stored) -> None:
        self._stored = stored
        self._ids = stored.ids()

    @classmethod
    def open(
        cls,
        url: str,
        fingerprint: str | None = None,
        *,
        reducer: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> "TokenStore":
        """Open a store.

        Args:
            url: root of the store, a path or any fsspec URL.
            fingerprint: the beginning of one, where the store holds several.
            reducer: instead of it, the reducer of the entries, e.g. `nest(keep=256)`, or its name alone.
            storage_options: options for fsspec.

        Raises ConfigError if there is no store, no such fingerprint, or more than one to choose from.
        """
        return cls(Stored.open(str(url), fingerprint, storage_options, reducer))

    @property
    def fingerprint(self) -> str:
        """Return the SHA-256 of `spec`, 64 hexadecimal digits."""
        return self._stored.fingerprint

    @property
    def spec(self) -> dict[str, Any]:
        """Return everything that the entries depend on: tower, frames, reducer. Any: plain JSON."""
        return dict(self._stored.spec)

    def refresh(self) -> None:
        """See what other processes committed since the store was opened."""
        self._stored.refresh()
        self._ids = self._stored.ids()

    def failures(self) -> dict[str, str]:
        """Return the class of failure and its message of each video that failed."""
        rows = self._stored.failures().to_pylist()
        return {row["video_id"]: f"{row['error_class']}: {row['error']}" for row in rows}

    def batches(self, size: int = 32, ids: Iterable[str] | None = None) -> Iterator[list[Entry]]:
        """Yield entries, `size` at a time and fewer in the last batch; all in the order of their ids, or those of `ids`.

        Raises ConfigError for a size below 1, KeyError for an id that is not in the store, StoreError for a damaged entry.
        """
        if size < 1:
            raise ConfigError(f"size must be at least 1, got {size}")
        wanted = list(self._ids if ids is None else ids)
        return ([self[name] for name in wanted[start : start + size]] for start in range(0, len(wanted), size))

    def __getitem__(self, video_id: str) -> Entry:
        """Read one entry. Raises KeyError if it is not in the store, StoreError if its bytes are damaged."""
        return self._stored.read(video_id)

    def __contains__(self, video_id: object) -> bool:
        row = self._stored.index.get(video_id) if isinstance(video_id, str) else None
        return row is not None and row["status"] == "committed"

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def __repr__(self) -> str:
        reducer, short = self.spec.get("reducer", {}).get("name"), self.fingerprint[:12]
        return f"TokenStore({self._stored.root!r}, fingerprint={short!r}, reducer={reducer!r}, videos={len(self)})"
