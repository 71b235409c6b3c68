"""Killed and stopped processes, in short; `python -m tests.faults` does it at length."""

from pathlib import Path

import pytest

from pipeline.store.token_store import TokenStore
from tests.faults import faults
from tests.tables import SPEC, corpus, encoded, failed

pytestmark = pytest.mark.timeout(900)


def test_killed_decoding_processes_cost_no_video_and_do_not_end_the_run(tmp_path: Path) -> None:
    """kill -9 while they decode and while they start: the same run goes on to its end."""
    outcome = faults.decode_children(tmp_path, videos=20, kills=3)
    assert outcome.runs[0].code == 0, outcome.runs[0].said
    assert outcome.ok, outcome


def test_a_killed_driver_leaves_no_process_and_no_gap(tmp_path: Path) -> None:
    """kill -9 of the driver alone: its decoding processes end by themselves, the next run completes the store."""
    outcome = faults.drivers(tmp_path, videos=30, kills=1)
    assert outcome.runs[0].code == -9
    assert outcome.ok, outcome
    assert outcome.found.again == 0


def test_a_signal_to_the_whole_group_is_put_down_to_no_video(tmp_path: Path) -> None:
    """SIGTERM to driver and decoding processes, as service managers send it: whole units, exit 3, no video CRASHED."""
    outcome = faults.terminated(tmp_path, videos=36)
    assert outcome.runs[0].code == 3
    assert outcome.ok, outcome


def test_a_video_whose_process_was_killed_is_tried_in_every_run(tmp_path: Path) -> None:
    """Whoever killed it, it says nothing about the video; a crash does."""
    store = TokenStore.create(str(tmp_path), SPEC)
    store.commit(encoded([failed("killed", "KILLED"), failed("crashed", "CRASHED")]))
    store.refresh()
    assert store.missing(corpus("crashed", "killed"))["video_id"].to_pylist() == ["killed"]
