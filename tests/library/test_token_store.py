"""The token store as the library shows it: a mapping of ids to entries, and entries as tensors."""

from pathlib import Path

import numpy as np
import pytest
import torch

from framefold import ConfigError, StoreError, TokenStore
from pipeline.store.token_store import TokenStore as Stored
from tests.pipeline.filled import NAMES, Place, filled
from tests.tables import SPEC, encoded, row


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Stored, TokenStore]:
    place: Place = (str(tmp_path / "store"), {})
    return filled(place), TokenStore.open(place[0])


def test_store_is_a_mapping_of_committed_videos(stored: tuple[Stored, TokenStore]) -> None:
    """A failed video is not in it."""
    _, store = stored
    assert len(store) == 12
    assert list(store) == sorted(NAMES)
    assert "v3" in store
    assert "bad" not in store
    assert 3 not in store
    assert store.failures().keys() == {"bad"}
    with pytest.raises(KeyError, match="bad"):
        _ = store["bad"]


def test_entries_are_those_of_the_pipeline(stored: tuple[Stored, TokenStore]) -> None:
    inner, store = stored
    assert {name: entry.payload_sha256 for name, entry in store.items()} == inner.payloads()
    assert np.array_equal(store["v4"].features, inner.read("v4").features)


@pytest.mark.parametrize(("size", "lengths"), [(5, [5, 5, 2]), (12, [12]), (100, [12])])
def test_batches_hold_every_entry_once(size: int, lengths: list[int], stored: tuple[Stored, TokenStore]) -> None:
    batches = list(stored[1].batches(size))
    assert [len(batch) for batch in batches] == lengths
    assert [entry.video_id for batch in batches for entry in batch] == sorted(NAMES)


def test_batches_of_chosen_ids_keep_their_order(stored: tuple[Stored, TokenStore]) -> None:
    batches = stored[1].batches(2, iter(["v7", "v1", "v3"]))
    assert [[entry.video_id for entry in batch] for batch in batches] == [["v7", "v1"], ["v3"]]
    with pytest.raises(ConfigError, match="size must be at least 1, got 0"):
        stored[1].batches(0)
    with pytest.raises(KeyError):
        list(stored[1].batches(2, ["v1", "none"]))


def test_refresh_shows_what_others_committed(stored: tuple[Stored, TokenStore]) -> None:
    inner, store = stored
    inner.commit(encoded([row("new")]))
    assert "new" not in store
    assert len(store) == 12
    store.refresh()
    assert "new" in store
    assert len(store) == 13


def test_entry_as_tensors_has_the_stored_values(stored: tuple[Stored, TokenStore]) -> None:
    """They are copies, so that writing to one changes nothing else."""
    entry = stored[1]["v2"]
    tensors = entry.to_torch()
    pairs = {
        "features": (entry.features, torch.float16),
        "positions": (entry.position, torch.float32),
        "timestamps": (np.asarray(entry.timestamps_s, np.float32), torch.float32),
        "sizes": (entry.size, torch.float32),
        "frames": (entry.frame, torch.int16),
        "anchors": (entry.anchor, torch.int32),
        "kinds": (entry.kind, torch.uint8),
    }
    for name, (values, kind) in pairs.items():
        tensor = getattr(tensors, name)
        assert tensor.dtype == kind, name
        assert np.array_equal(tensor.numpy(), values), name
    assert len(tensors.timestamps) == len(entry.timestamps_s) > 0
    before = entry.features.copy()
    tensors.features.fill_(7)
    assert np.array_equal(entry.features, before)


def test_damaged_entry_is_a_store_error(stored: tuple[Stored, TokenStore]) -> None:
    inner, store = stored
    for path in Path(inner.tokens).glob("*.parquet"):
        content = bytearray(path.read_bytes())
        content[len(content) // 3 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 3)
        path.write_bytes(content)
    with pytest.raises(StoreError):
        list(store.batches())


def test_store_that_is_not_there_or_ambiguous_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no token store there"):
        TokenStore.open(str(tmp_path / "none"))
    one = Stored.create(str(tmp_path / "two"), SPEC)
    Stored.create(str(tmp_path / "two"), {**SPEC, "more": 1})
    with pytest.raises(ConfigError, match="several fingerprints"):
        TokenStore.open(str(tmp_path / "two"))
    opened = TokenStore.open(str(tmp_path / "two"), one.fingerprint[:8])
    assert opened.fingerprint == one.fingerprint
    assert opened.spec == SPEC
    assert one.fingerprint[:12] in repr(opened)
