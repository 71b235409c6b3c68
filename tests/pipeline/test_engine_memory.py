"""An engine that runs out of memory halves what it tries, and loses no answer."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.pipeline.engines import RAGGED, engine, groups, memory_for, width_of

pytestmark = pytest.mark.usefixtures("one_thread")


def test_running_out_of_memory_halves_the_batch_and_loses_nothing() -> None:
    """Where two rows fit and three do not, all questions are answered, and as before."""
    asked = engine()
    videos = groups(RAGGED, width_of(asked))
    expected = asked.answer(videos)
    with memory_for(asked, lambda embeds: len(embeds) <= 2) as tried:
        assert asked.answer(videos) == expected
    assert max(tried) > 2


def test_a_video_that_never_fits_is_a_status_and_its_neighbours_are_answered() -> None:
    """Only the questions of the largest video run out of memory; one after another, nothing is lost."""
    asked = engine()
    videos = groups([*RAGGED[:2], (200, ["one question alone"]), RAGGED[3]], width_of(asked))
    expected = asked.answer(videos)
    with memory_for(asked, lambda embeds: embeds.shape[1] < 150):
        replies = asked.answer(videos)
    assert [reply.status for reply in replies[2]] == ["out_of_memory"]
    assert [replies[0], replies[1], replies[3]] == [expected[0], expected[1], expected[3]]


def test_rows_that_never_fit_are_a_status() -> None:
    """The prefix fits but no question does: every question says so, also when several videos share a batch."""
    asked = engine()
    videos = groups([(30, ["what is it", "how many"]), (31, ["who"])], width_of(asked))
    with memory_for(asked, lambda embeds: embeds.shape[1] > 25):
        replies = asked.answer(videos)
    assert [[reply.status for reply in video] for video in replies] == [["out_of_memory"] * 2, ["out_of_memory"]]


def test_rows_that_do_not_fit_beside_other_videos_are_tried_beside_fewer() -> None:
    """The prefixes of a batch take memory too: before a row is given up, its video is read alone."""
    asked = engine()
    videos = groups([(30, ["what is it", "how many"]), (31, ["who"])], width_of(asked))
    expected = asked.answer(videos)
    read: list[int] = []

    def enough(embeds: Tensor) -> bool:
        if embeds.shape[1] > 25:
            read.append(len(embeds))
        return read[-1] == 1

    with memory_for(asked, lambda embeds: enough(embeds) or embeds.shape[1] > 25):
        assert asked.answer(videos) == expected
    assert read == [2, 1, 1]


def test_batches_shrink_once_memory_has_run_out() -> None:
    """The limit that did not fit is not tried again."""
    asked = engine(max_batch_tokens=4000)
    plain, left = asked._answer_videos, [2]

    def sometimes(videos: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("full")
        return plain(videos)

    asked._answer_videos = sometimes
    made = groups(RAGGED, width_of(asked))
    said = asked.answer(made)
    assert asked.max_batch_tokens == 4000 * 9 // 16
    assert said == engine(max_batch_tokens=4000).answer(made)
    assert engine().max_batch_tokens > 0
