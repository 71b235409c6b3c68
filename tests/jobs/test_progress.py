"""Progress lines and shares of CPUs: small things that a person or a scheduler depends on."""

import logging
from collections import Counter

import pytest

from jobs.cluster import ClusterConfig, share
from jobs.launch import storage_options
from jobs.progress import Progress
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


@pytest.mark.parametrize("cpus", [1, 2, 4, 64])
@pytest.mark.parametrize("actors", [2, 3, 30])
def test_all_actors_fit_whatever_the_machine(cpus: float, actors: int) -> None:
    """Ray would wait for ever for the one that does not."""
    each = share(cpus, actors)
    assert 0 < each <= 1
    assert each * actors <= cpus


def test_an_unknown_runner_and_wrong_options_are_refused() -> None:
    """With what was expected."""
    with pytest.raises(ConfigError, match="ray or local"):
        ClusterConfig(runner="spark")
    with pytest.raises(ConfigError, match="JSON object"):
        storage_options("[1]")
    assert storage_options('{"key": "a"}') == {"key": "a"}
