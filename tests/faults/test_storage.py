"""Storage that falters, is gone, or is full, in short; `python -m tests.faults` does it at length."""

from pathlib import Path

import fsspec
import pytest

from pipeline.corpus.fetch import fetch
from pipeline.errors import StoreError, VideoError
from pipeline.storage.filesystem import create_exclusive, list_files, read_bytes, read_many, size_of
from tests import s3
from tests.faults import storage
from tests.faults.proxy import FaultProxy

MIXED = {"slow_down": 0.05, "reset": 0.05, "truncate": 0.05, "lost_answer": 0.05, "stall": 0.02}
pytestmark = pytest.mark.timeout(900)


@pytest.mark.s3
def test_a_run_over_faltering_storage_blames_no_video(tmp_path: Path, s3_port: int) -> None:
    """503, resets, short bodies, lost answers and silence: one run, no failure that is not a bad file's own."""
    outcome = storage.faltering(tmp_path, port=s3_port, videos=16, shares=MIXED, seed=3)
    assert outcome.ok, outcome
    assert outcome.harm >= 10


@pytest.mark.s3
@pytest.mark.parametrize("fault", ["slow_down", "reset", "truncate", "lost_answer"])
def test_every_way_to_ask_storage_is_tried_again(s3_port: int, tmp_path: Path, fault: str) -> None:
    """List, size, read, read many, create, fetch: with a third of the requests spoiled and a driver that tries once."""
    fs = fsspec.filesystem("s3", **s3.options(s3_port))
    folder = f"faults{fault.replace('_', '')}"
    fs.mkdir(folder)
    head = (Path(__file__).parents[1] / "videos" / "testsrc2.mp4").read_bytes()
    fs.pipe_file(f"{folder}/a/0.parquet", head)
    with FaultProxy(s3_port, {fault: 0.3}, seed=1) as proxy:
        spoiled = fsspec.filesystem("s3", skip_instance_cache=True, **storage.options(proxy.port))
        for number in range(1, 6):
            assert create_exclusive(spoiled, f"{folder}/a/{number}.parquet", head)
            names = [f"{folder}/a/{at}.parquet" for at in range(number + 1)]
            assert list_files(spoiled, f"{folder}/a", ".parquet") == dict.fromkeys(names, len(head))
            assert size_of(spoiled, names[-1]) == len(head)
            assert read_bytes(spoiled, names[-1]) == head
            assert read_bytes(spoiled, names[-1], 10, 500) == head[10:500]
            assert read_many(spoiled, names) == dict.fromkeys(names, head)
            fetched = fetch(f"s3://{names[-1]}", tmp_path / "video", 1 << 20, storage.options(proxy.port))
            assert (fetched.bytes, (tmp_path / "video").read_bytes()) == (len(head), head)
        assert proxy.spoiled >= 10


@pytest.mark.s3
def test_storage_that_stays_broken_is_one_clear_error(
    s3_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A StoreError for the store, UNREADABLE for a video; never an error of some driver. As many tries as ever, sooner."""
    monkeypatch.setattr("pipeline.storage.retry.FIRST_WAIT_S", 0.01)
    with FaultProxy(s3_port, {"reset": 1.0}) as proxy:
        fs = fsspec.filesystem("s3", skip_instance_cache=True, **storage.options(proxy.port))
        with pytest.raises(StoreError, match=r"tests/x\.parquet: cannot be written"):
            create_exclusive(fs, "tests/x.parquet", b"x")
        with pytest.raises(VideoError) as caught:
            fetch("s3://tests/x.mp4", tmp_path / "video", 1 << 20, storage.options(proxy.port))
        assert caught.value.code == "UNREADABLE"
        assert proxy.counts["reset"] > 10


def test_a_full_disk_ends_the_run_with_a_sentence_and_the_next_run_completes_it(tmp_path: Path) -> None:
    """A real file system of 300 KB, then a larger one; no part of a file is left behind."""
    try:
        with storage.small_disk(tmp_path / "try", 64):
            pass
    except PermissionError as error:
        pytest.skip(str(error))
    outcome = storage.disk_full(tmp_path, videos=30, size_kb=300)
    assert outcome.runs[0].code == 4
    assert outcome.ok, outcome
