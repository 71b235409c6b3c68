"""A store of twelve videos in four units, and a failure."""

from typing import Any

from pipeline.store.token_store import TokenStore
from tests.tables import SPEC, encoded, failed, row

Place = tuple[str, dict[str, Any]]
NAMES = [f"v{number}" for number in range(12)]


def filled(place: Place) -> TokenStore:
    url, options = place
    store = TokenStore.create(url, SPEC, options)
    for start in range(0, 12, 3):
        store.commit(encoded([row(name) for name in NAMES[start : start + 3]]))
    store.commit(encoded([failed("bad")]))
    store.refresh()
    return store
