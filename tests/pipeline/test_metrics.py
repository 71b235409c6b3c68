"""Scores are checked against slow, obvious arithmetic."""

import math
import random

import numpy as np
import pytest

from pipeline.evaluate import metrics
from pipeline.questions.datasets import ACTIVITYNET_TYPES


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
        ("an apple", "apple"),
        ("The the", "the the"),
        ("twenty zero", "20 0"),
        ("twenty onerous", "20 onerous"),
        ("attwenty two", "attwenty 2"),
        *((f"{mark}dog{mark}", "dog") for mark in ".,!?;:\"'"),
        ("...", ""),
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
        ("No, it is not", "no", True),
        ("no", "No.", True),
        ("nothing", "no", False),
        ("yesterday", "yes", False),
        ("yes", "no", False),
        ("red", "yes", False),
        ("three", "3", True),
        ("The dog", "dog", True),
        ("dog food", "dog", False),
        (None, "yes", False),
        ("", "yes", False),
        (None, "...", False),
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


def test_videos_that_balance_make_nothing_narrower_than_as_many_questions() -> None:
    """One right and one wrong answer in nearly every video: residuals cancel, and still n is not above the questions."""
    correct = np.array([True, False] * 12 + [True])
    found = metrics.accuracy(correct, np.array([*np.repeat(np.arange(12), 2), 11]))
    alone = metrics.accuracy(correct, np.arange(25))
    assert found is not None
    assert alone is not None
    assert found.high - found.low == pytest.approx(alone.high - alone.low, rel=0.02)


def test_one_video_alone_counts_as_one_question() -> None:
    """There is no variance between videos to measure, so nearly nothing is known."""
    found = metrics.accuracy(np.array([True, False, True, True]), np.zeros(4, dtype=np.int64))
    assert found is not None
    z2 = 1.959963984540054**2
    centre, half = (0.75 + z2 / 2) / (1 + z2), math.sqrt(z2 * (0.75 * 0.25 + z2 / 4)) / (1 + z2)
    assert (found.low, found.high) == (pytest.approx(centre - half), pytest.approx(centre + half))
    difference = metrics.paired_difference(np.array([True, True]), np.array([False, True]), np.zeros(2, dtype=np.int64))
    assert difference is not None
    assert (difference.difference, difference.low, difference.high) == (0.5, 0.5, 0.5)


def test_an_interval_ends_at_zero_and_at_one() -> None:
    """And always holds the share itself, where rounding would put it outside."""
    for share in (False, True):
        for questions in range(1, 40):
            found = metrics.accuracy(np.full(questions, share), np.arange(questions))
            assert found is not None
            assert 0.0 <= found.low <= found.accuracy <= found.high <= 1.0


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
    none = np.zeros(0, dtype=bool)
    assert metrics.paired_difference(none, none, np.zeros(0, dtype=np.int64)) is None
    assert metrics.free_published(np.ones(1, dtype=bool), ["motion"]) is None
    assert metrics.summary(np.zeros(2, dtype=bool), np.zeros(2, dtype=bool), np.arange(2))["answered_only"] is None


def test_each_type_has_its_own_share_and_its_own_clusters() -> None:
    """In alphabetical order; questions without a type are in none."""
    types = ["number", "color", None, "number", "number", "color"]
    correct, videos = np.array([True, False, True, False, True, True]), np.array([0, 0, 1, 1, 1, 2])
    found = metrics.by_type(correct, types, videos)
    assert list(found) == ["color", "number"]
    assert (found["number"].correct, found["number"].asked, found["color"].accuracy) == (2, 3, 0.5)
    assert found["number"] == metrics.accuracy(correct[[0, 3, 4]], videos[[0, 3, 4]])
    assert found["number"] != metrics.accuracy(correct[[0, 3, 4]], np.arange(3))


def test_a_summary_stands_over_all_questions_with_the_answered_ones_beside_it() -> None:
    """A question without an answer is wrong in the first number and absent from the second."""
    correct, answered = np.array([True, False, False, False]), np.array([True, True, False, False])
    found = metrics.summary(correct, answered, np.arange(4))
    assert (found["accuracy"], found["correct"], found["asked"], found["answered_only"]) == (0.25, 1, 4, 0.5)


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
    spatial = ["motion", "other", "color", "spatial", "number"]
    assert metrics.free_published(np.ones(5, dtype=bool), spatial) == 3 / 2


def test_a_run_against_itself_differs_by_nothing() -> None:
    """The paired difference of equal answers is zero with an empty interval, however hard the questions."""
    correct = np.array([True, False, True, True])
    found = metrics.paired_difference(correct, correct, np.array([0, 0, 1, 1]))
    assert found is not None
    assert (found.difference, found.low, found.high, found.better, found.worse) == (0.0, 0.0, 0.0, 0, 0)


def test_the_paired_interval_equals_its_formula_written_as_loops() -> None:
    """Ours minus theirs, the variance of the mean clustered by video, 1.96 standard errors to either side."""
    draw = random.Random(4)
    videos = [draw.randrange(12) for _ in range(90)]
    ours, theirs = ([draw.random() < 0.2 + share * video / 12 for video in videos] for share in (0.7, 0.3))
    delta = [int(a) - int(b) for a, b in zip(ours, theirs, strict=True)]
    mean = sum(delta) / 90
    sums = [sum(d - mean for d, w in zip(delta, videos, strict=True) if w == v) for v in set(videos)]
    half = 1.959963984540054 * math.sqrt(len(sums) / (len(sums) - 1) * sum(s * s for s in sums)) / 90
    found = metrics.paired_difference(np.array(ours), np.array(theirs), np.array(videos))
    assert found is not None
    assert (found.better, found.worse) == (delta.count(1), delta.count(-1))
    assert (found.difference, found.low, found.high) == tuple(map(pytest.approx, (mean, mean - half, mean + half)))
    assert found.better > found.worse > 0


def test_a_paired_interval_ends_where_differences_do() -> None:
    """At -1 and at 1."""
    best, worst = np.array([True, True, True, False]), np.zeros(4, dtype=bool)
    ours, theirs = metrics.paired_difference(best, worst, np.arange(4)), metrics.paired_difference(worst, best, np.arange(4))
    assert ours is not None
    assert theirs is not None
    assert (ours.high, theirs.low) == (1.0, -1.0)
    assert 0 < ours.low == -theirs.high


def test_videos_are_told_apart_by_their_names() -> None:
    """Equal names one number, whatever they look like."""
    codes = metrics.video_codes(["b", "a", "b", "1", "01"]).tolist()
    assert codes[0] == codes[2]
    assert len(set(codes)) == 4


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
