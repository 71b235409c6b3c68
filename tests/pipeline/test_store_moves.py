"""A reader beside compaction and gc: an entry that moves is found again, one that is lost is reported."""

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.errors import StoreError
from pipeline.store import index
from pipeline.store.maintenance import compact, gc
from pipeline.store.token_store import MOVES, TokenStore
from tests.pipeline.filled import Place, filled
from tests.tables import encoded, row

LATER = 1e12
"""A time at which every file is older than any grace period."""


def move_all(place: Place, name: str) -> None:
    """Commit one more video, merge all shards into a new one and remove the old ones, as another process would."""
    store = TokenStore.open(place[0], storage_options=place[1])
    store.commit(encoded([row(name)]))
    store.refresh()
    compact(store, entries_per_shard=512)
    assert gc(store.fs, store.root, now=LATER)["files"] > 0


def before_each_read(store: TokenStore, times: int, happens: Callable[[int], None]) -> list[str]:
    """Let something happen before each of the first reads; returns the list of shards that were read."""
    read, shards = store.reader.read, list[str]()

    def late(wanted: Any) -> Any:
        shards.append(wanted.shard)
        if len(shards) <= times:
            happens(len(shards))
        return read(wanted)

    store.reader.read = late  # type: ignore[method-assign]  # the moment between the index and the shard
    return shards


@pytest.mark.parametrize("times", [1, 2, 5])
def test_read_follows_an_entry_that_compaction_moves_again_and_again(tmp_path: Any, times: int) -> None:
    place = (str(tmp_path), {})
    store = filled(place)
    shards = before_each_read(store, times, lambda number: move_all(place, f"w{number}"))
    assert store.read("v3").features.tobytes() == row("v3")["features"]
    assert len(set(shards)) == times + 1


def test_read_gives_up_on_an_entry_that_never_rests(tmp_path: Any) -> None:
    """Each shard is gone before it is read, for longer than any compaction goes on: an error, not an endless loop."""
    place = (str(tmp_path), {})
    store = filled(place)
    shards = before_each_read(store, 10 * MOVES, lambda number: move_all(place, f"w{number}"))
    with pytest.raises(StoreError, match=r"\.parquet"):
        store.read("v3")
    assert len(shards) == MOVES + 1


def lose(store: TokenStore, video_id: str) -> str:
    """Remove the shard of a video, which the index goes on naming."""
    found = store.index.get(video_id)
    assert found is not None
    store.fs.rm_file(f"{store.tokens}/{found['shard']}.parquet")
    return str(found["shard"])


def test_read_reports_a_lost_shard_while_others_commit(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index changes at every look, but never the row of this video."""
    place, looks = (str(tmp_path), {}), list[int]()
    store = filled(place)
    shard = lose(store, "v3")
    other = TokenStore.open(place[0])
    listed = index.list_files

    def busy(*args: Any) -> Any:
        if args[1] == store.index.folder and len(looks) < 3:
            looks.append(1)
            other.index.append([{**(other.index.get("v0") or {}), "video_id": f"w{len(looks)}"}])
        return listed(*args)

    monkeypatch.setattr(index, "list_files", busy)
    with pytest.raises(StoreError, match=shard):
        store.read("v3")
    assert len(looks) == 3
    assert store.index.get("w3") is not None


def test_read_looks_again_where_a_listing_lacks_a_fragment(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page of the merged fragment was listed before it was written, the page of the old ones after their removal."""
    place = (str(tmp_path), {})
    store = filled(place)
    move_all(place, "w1")
    listings: list[dict[str, int]] = [{}]
    listed = index.list_files
    monkeypatch.setattr(index, "list_files", lambda *args: listings.pop() if listings else listed(*args))
    assert store.read("v3").features.tobytes() == row("v3")["features"]
    assert listings == []


def test_read_of_a_video_that_was_withdrawn_meanwhile_is_a_key_error(tmp_path: Any) -> None:
    place = (str(tmp_path), {})
    store = filled(place)
    lose(store, "v3")
    other = TokenStore.open(place[0])
    known = other.index.get("v3")
    assert known is not None
    fields = {**dict.fromkeys(known), "video_id": "v3", "uri": known["uri"], "source_hint": known["source_hint"]}
    other.index.append([{**fields, "status": "failed", "error_class": "DAMAGED", "generation": known["generation"] + 1}])
    with pytest.raises(KeyError, match="v3"):
        store.read("v3")
