"""Progress lines and shares of CPUs: small things that a person or a scheduler depends on."""

import logging
from collections import Counter
from random import Random

import pytest

from jobs.runtime.cluster import JOBS, ClusterConfig, share
from jobs.runtime.launch import storage_options
from jobs.runtime.progress import Progress
from pipeline.errors import ConfigError


def test_a_line_says_done_failed_rate_and_what_is_left(caplog: pytest.LogCaptureFixture) -> None:
    """Not more often than asked for, but always at the end."""
    now = [0.0]
    progress = Progress("encode", 10, every_s=5, clock=lambda: now[0])
    with caplog.at_level(logging.INFO):
        for second, committed, failed in ((1, 2, 0), (5, 2, 1), (6, 1, 0), (10, 4, 0)):
            now[0] = float(second)
            progress.add(Counter(committed=committed) + Counter(failed=failed))
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "encode 5/10, 4 committed, 1 failed, 1.00/s, 0:05 left",
        "encode 10/10, 9 committed, 1 failed, 1.00/s, 0:00 left",
    ]


@pytest.mark.parametrize("nodes", [[1.0], [2.0], [4.0], [64.0], [2.0] * 4, [1.0] * 16, [0.5, 8.0]])
def test_of_as_many_jobs_as_may_run_one_always_fits(nodes: list[float]) -> None:
    """Whatever got in first and wherever it lies: Ray would wait for ever for the actor that does not."""
    random = Random(1)
    for _ in range(300):
        actors = random.choices([2, 3, 5, 30], k=JOBS)
        jobs = [share(nodes, count) for count in actors]
        waiting = [at for at in range(JOBS) for _ in range(actors[at])]
        random.shuffle(waiting)
        free, left = list(nodes), dict.fromkeys(range(JOBS), 0)
        for at in waiting:
            rooms = [node for node, cpus in enumerate(free) if cpus >= jobs[at] - 1e-9]
            left[at] += not rooms
            if rooms:
                free[random.choice(rooms)] -= jobs[at]
        assert 0 in left.values()
        assert all(0 < each <= 1 for each in jobs)


def test_a_large_cluster_gives_a_cpu_to_each_actor() -> None:
    """Less only where that many jobs would not fit."""
    assert share([16.0, 16.0], 3) == 1
    assert share([2.0], 3) == 0.1538


def test_an_unknown_runner_and_wrong_options_are_refused() -> None:
    """With what was expected."""
    with pytest.raises(ConfigError, match="ray or local"):
        ClusterConfig(runner="spark")
    with pytest.raises(ConfigError, match="JSON object"):
        storage_options("[1]")
    assert storage_options('{"key": "a"}') == {"key": "a"}
