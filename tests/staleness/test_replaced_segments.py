"""Nothing stale: what a replaced video has no part for any more is served no more, whole or in segments."""

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.corpus.segments import outdated, span_of
from pipeline.schema import CORPUS
from pipeline.store.token_store import TokenStore
from tests.staleness.encoding import VIDEOS, encoded_by, job

LONG, SHORT = VIDEOS / "nasa_13013.mp4", VIDEOS / "testsrc2.mp4"


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A folder of one long video, v, and one that stays."""
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / "v.mp4").write_bytes(LONG.read_bytes())
    (folder / "stays.mp4").write_bytes(LONG.read_bytes())
    return folder


def of(store: Path, name: str) -> set[str]:
    """What is served of a video."""
    return {one for one in TokenStore.open(str(store)).ids() if span_of(one)[0] == name}


def test_segments_that_a_shorter_video_has_not_are_withdrawn(clips: Path, tmp_path: Path, model: str) -> None:
    """Those of the other video stay; a further run finds nothing to do; the old film brings its segments back."""
    store = tmp_path / "store"
    cut = job(clips, store, model, segments=2.0)
    encoded_by(cut)
    before, others = of(store, "v"), of(store, "stays")
    assert len(before) >= 3
    (clips / "v.mp4").write_bytes(SHORT.read_bytes())
    encoded_by(cut)
    after = of(store, "v")
    assert len(after) < len(before)
    assert not {one for one in before - after if one in of(store, "v")}
    assert of(store, "stays") == others
    assert {row["error_class"] for row in TokenStore.open(str(store)).failures().to_pylist()} == {"SUPERSEDED"}
    assert encoded_by(cut) == [0, 0, 0]
    (clips / "v.mp4").write_bytes(LONG.read_bytes())
    encoded_by(cut)
    assert of(store, "v") == before


@pytest.mark.parametrize(("first", "then"), [(None, 2.0), (2.0, None)])
def test_a_whole_video_and_its_segments_do_not_outlive_each_other(
    clips: Path, tmp_path: Path, model: str, first: float | None, then: float | None
) -> None:
    """Of one film both may be there; of a film that was replaced only what it is now."""
    store = tmp_path / "store"
    encoded_by(job(clips, store, model, segments=first))
    encoded_by(job(clips, store, model, segments=then))
    assert any(span_of(one)[1] for one in of(store, "v"))
    assert "v" in of(store, "v")
    (clips / "v.mp4").write_bytes(SHORT.read_bytes())
    encoded_by(job(clips, store, model, segments=then))
    assert ("v" in of(store, "v")) == (then is None)
    assert any(span_of(one)[1] for one in of(store, "v")) == (then is not None)
    assert {"stays"} < of(store, "stays")


def test_what_storage_tells_nothing_of_is_left_alone() -> None:
    """Without a state nobody knows whether the film is another; other videos are no business of this corpus."""
    committed = pa.table({"video_id": ["v#t=0.000,2.000", "w#t=0.000,2.000"], "source_hint": ['{"size":1}', '{"size":1}']})
    for hint, gone in (("{}", []), ('{"size":1}', []), ('{"size":2}', ["v#t=0.000,2.000"])):
        corpus = pa.Table.from_pylist([{"video_id": "v", "uri": "/v.mp4", "source_hint": hint}], schema=CORPUS)
        assert outdated(committed, corpus)["video_id"].to_pylist() == gone
