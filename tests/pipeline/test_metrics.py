"""Scores are checked against slow, obvious arithmetic."""

import math
import random

import numpy as np
import pytest

from pipeline import metrics
from pipeline.datasets import ACTIVITYNET_TYPES


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("  Two.", "2"),
        ("twenty-one dogs", "21 dogs"),
        ("Twenty  ONE", "21"),
        ("fifty", "50"),
        ("The red car!", "red car"),
        ("a", "a"),
        ("on a table", "on table"),
        ("it’s  raining...", "it's raining"),
        ("10", "10"),
        ("anyone", "anyone"),
    ],
)
def test_normalising_removes_what_does_not_change_an_answer(text: str, normal: str) -> None:
    """Case, outer punctuation, articles and number words do not make an answer wrong."""
    assert metrics.normalise(text) == normal


@pytest.mark.parametrize(
    ("prediction", "answer", "same"),
    [
        ("Yes, he is wearing a hat.", "yes", True),
        ("No.", "no", True),
        ("nothing", "no", False),
        ("yesterday", "yes", False),
        ("yes", "no", False),
        ("red", "yes", False),
        ("three", "3", True),
        ("The dog", "dog", True),
        ("dog food", "dog", False),
        (None, "yes", False),
        ("", "yes", False),
    ],
)
def test_a_normalised_match_reads_yes_and_no_from_the_first_word(prediction: str | None, answer: str, same: bool) -> None:
    """A sentence that begins with yes answers a yes/no question; other answers are compared whole."""
    assert metrics.normalised_matches([prediction], [answer]).tolist() == [same]


def test_an_exact_match_forgives_nothing() -> None:
    """Case and points count, a missing prediction is wrong."""
    matches = metrics.exact_matches(["two", "Two", "two.", None], ["two"] * 4)
    assert matches.tolist() == [True, False, False, False]


def test_the_interval_equals_its_formula_written_as_loops() -> None:
    """The vectorised cluster-robust interval is the one the docstring states."""
    draw = random.Random(3)
    videos = [draw.randrange(20) for _ in range(150)]
    correct = [draw.random() < 0.3 + 0.02 * video for video in videos]
    share = sum(correct) / 150
    sums = {v: sum(c - share for c, w in zip(correct, videos, strict=True) if w == v) for v in set(videos)}
    variance = len(sums) / (len(sums) - 1) * sum(s * s for s in sums.values()) / 150**2
    n, z = min(150.0, share * (1 - share) / variance), 1.959963984540054
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    found = metrics.accuracy(np.array(correct), np.array(videos))
    assert found is not None
    assert (found.accuracy, found.correct, found.asked) == (share, sum(correct), 150)
    assert found.low == pytest.approx(centre - half)
    assert found.high == pytest.approx(centre + half)


def test_questions_that_stand_or_fall_together_widen_the_interval() -> None:
    """Ten questions a video that are all right or all wrong say as much as one question a video."""
    of_video = np.array([True, False] * 20)
    alone = metrics.accuracy(of_video, np.arange(40))
    together = metrics.accuracy(np.repeat(of_video, 10), np.repeat(np.arange(40), 10))
    assert alone is not None
    assert together is not None
    assert together.high - together.low == pytest.approx(alone.high - alone.low, rel=0.03)


def test_all_right_is_not_certain() -> None:
    """With every answer right the interval still reaches below 1, by the number of videos and not of questions."""
    found = metrics.accuracy(np.ones(100, dtype=bool), np.repeat(np.arange(10), 10))
    assert found is not None
    assert found.high == 1.0
    assert found.low == pytest.approx(10 / (10 + 1.959963984540054**2))


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """On 400 draws from a clustered world whose accuracy is 0.5 between 92 and 98 % of the intervals hold it."""
    rng = np.random.default_rng(0)
    video_Q = np.repeat(np.arange(60), 8)
    held = 0
    for _ in range(400):
        hardness_V = rng.uniform(0.2, 0.8, 60)
        found = metrics.accuracy(rng.uniform(size=480) < hardness_V[video_Q], video_Q)
        assert found is not None
        held += found.low <= 0.5 <= found.high
    assert 368 <= held <= 392


def test_nothing_asked_has_no_accuracy() -> None:
    """An empty selection is None, not zero."""
    assert metrics.accuracy(np.zeros(0, dtype=bool), np.zeros(0, dtype=np.int64)) is None
    assert metrics.activitynet_accuracies(np.ones(1, dtype=bool), ["motion"])["color"] is None


def test_free_is_the_share_over_types_three_to_eight() -> None:
    """Free is a mean over questions, not over types, and leaves motion, spatial and temporal out."""
    types = [*ACTIVITYNET_TYPES, "other", "other"]
    correct = np.array([True, True, True, True, False, False, False, False, False, True, True])
    lines = metrics.activitynet_accuracies(correct, types)
    assert lines["free"] == 3 / 8
    assert lines["all"] == 6 / 11
    assert lines["other"] == 2 / 3


def test_the_published_free_depends_on_the_order_of_the_questions() -> None:
    """The released script leaves the first three types to appear out of the denominator, whichever they are."""
    correct = np.array([True] * 9)
    assert metrics.free_published(correct, ACTIVITYNET_TYPES) == 1.0
    assert metrics.free_published(correct, [*ACTIVITYNET_TYPES[::-1]]) == 1.0
    doubled = ["other", "other", "yes/no", "color", "motion"]
    assert metrics.free_published(np.ones(5, dtype=bool), doubled) == 4 / 1


def test_a_run_against_itself_differs_by_nothing() -> None:
    """The paired difference of equal answers is zero with an empty interval, however hard the questions."""
    correct = np.array([True, False, True, True])
    found = metrics.paired_difference(correct, correct, np.array([0, 0, 1, 1]))
    assert found is not None
    assert (found.difference, found.low, found.high, found.better, found.worse) == (0.0, 0.0, 0.0, 0, 0)


def test_pairing_is_narrower_than_two_separate_intervals() -> None:
    """Two runs that differ on few questions are told apart although their own intervals overlap."""
    rng = np.random.default_rng(1)
    base = rng.uniform(size=1000) < 0.5
    better = base | (rng.uniform(size=1000) < 0.04)
    videos = np.repeat(np.arange(100), 10)
    found = metrics.paired_difference(better, base, videos)
    ours, theirs = metrics.accuracy(better, videos), metrics.accuracy(base, videos)
    assert found is not None
    assert ours is not None
    assert theirs is not None
    assert found.low > 0
    assert ours.low < theirs.high
