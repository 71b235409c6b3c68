"""Markers follow from what a test uses."""

import subprocess
import time
from types import SimpleNamespace
from typing import Any

import pytest

from tests import ray_head
from tests.command import framefold
from tests.faults.runs import MODEL
from tests.marking import needs_machine, some_cases
from tests.tables import row


def starts() -> None:
    subprocess.run(["true"], check=True)


def waits() -> None:
    time.sleep(1)


def runs_a_command() -> None:
    assert framefold("reducers").returncode == 0


def calls_through_a_module() -> None:
    ray_head.submit("http://127.0.0.1:1", "folder", "name")


def starts_within() -> None:
    def later() -> None:
        starts()

    later()


class Helper:
    def begin(self) -> None:
        starts()


def uses_a_class() -> None:
    Helper().begin()


def computes() -> None:
    assert row("a")["video_id"] == "a"
    assert time.time() > 0
    assert MODEL.name


@pytest.mark.parametrize("test", [starts, waits, runs_a_command, calls_through_a_module, starts_within, uses_a_class])
def test_what_starts_a_process_or_waits_needs_the_machine(test: Any) -> None:
    assert needs_machine(test, {})


def test_what_computes_does_not_need_the_machine() -> None:
    assert not needs_machine(computes, {})


@pytest.mark.parametrize(("cases", "kept"), [(2, [0, 1]), (3, [0, 1, 2]), (7, [0, 2, 4])])
def test_some_cases_are_spread_over_all(cases: int, kept: list[int]) -> None:
    items: Any = [SimpleNamespace(nodeid=f"test_a.py::test_x[{number}]") for number in range(cases)]
    alone: Any = SimpleNamespace(nodeid="test_a.py::test_y")
    few, others = some_cases([*items, alone], 3)
    assert few == [*(items[at] for at in kept), alone]
    assert len(few) + len(others) == cases + 1
