"""Which tests are fast, and which need the machine for themselves: told by what they use, not by a list of names.

`serial` is a test that starts Ray, an S3 server or any other process, or that waits for a clock: two of them at once would
make one another late. `slow` is that too, or a test of a folder of long tests. `make test-fast` runs what is neither, and of
each test some of its cases.
"""

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent
SLOW_FOLDERS = frozenset({"faults", "jobs", "poison"})
"""Whole jobs, real faults and thousands of files."""
STARTERS = ("subprocess", "multiprocessing")
"""Modules that start processes."""
CLOCKS = frozenset({"monotonic", "perf_counter", "sleep"})
SERVERS = {"s3_port": "s3", "head": "ray"}
"""Fixtures that start a server, with the marker of their tests."""


def mark(items: list[pytest.Item]) -> None:
    """Give each test its markers."""
    known: dict[types.CodeType, bool] = {}
    for item in items:
        for name in sorted(SERVERS.keys() & set(getattr(item, "fixturenames", ()))):
            item.add_marker(SERVERS[name])
        if any(map(item.get_closest_marker, ("ray", "s3"))) or any(needs_machine(one, known) for one in functions(item)):
            item.add_marker("serial")
        if item.get_closest_marker("serial") or item.path.relative_to(TESTS).parts[0] in SLOW_FOLDERS:
            item.add_marker("slow")


def some_cases(items: list[pytest.Item], most: int) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """Return at most so many cases of each test, spread over all it has, and the other ones. The order stays."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        cases.setdefault(item.nodeid.split("[")[0], []).append(item)
    kept = {one[at * len(one) // most].nodeid for one in cases.values() for at in range(most)}
    return [item for item in items if item.nodeid in kept], [item for item in items if item.nodeid not in kept]


def functions(item: pytest.Item) -> Iterator[object]:
    """The function of a test, and those of its fixtures."""
    if isinstance(item, pytest.Function):
        yield getattr(getattr(item.function, "hypothesis", None), "inner_test", item.function)
        for definitions in item._fixtureinfo.name2fixturedefs.values():
            yield definitions[-1].func


def needs_machine(value: object, known: dict[types.CodeType, bool]) -> bool:
    """Tell whether a function or class of the tests, or one that it names, starts a process or waits for a clock."""
    if isinstance(value, types.ModuleType) or not str(getattr(value, "__module__", "")).startswith("tests."):
        return _starts(value)
    if isinstance(value, type):
        return any(needs_machine(part, known) for part in vars(value).values() if callable(part))
    function = getattr(value, "__wrapped__", value)
    code = getattr(function, "__code__", None)
    if code is not None and code not in known:
        known[code] = False  # for functions that name one another
        names = set(names_of(code))
        known[code] = bool(names & CLOCKS) or any(needs_machine(one, known) for one in named(function.__globals__, names))
    return code is not None and known[code]


def names_of(code: types.CodeType) -> Iterator[str]:
    """Every global name and attribute that a function and those within it use."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from names_of(constant)


def named(variables: dict[str, Any], names: set[str]) -> Iterator[object]:
    """What names stand for in a module, and in the modules of the tests that it names."""
    for name in names & variables.keys():
        value = variables[name]
        yield value
        if isinstance(value, types.ModuleType) and value.__name__.startswith("tests"):
            yield from (getattr(value, part) for part in names if hasattr(value, part))


def _starts(value: object) -> bool:
    """Tell whether a value is a module that starts processes, or comes from one."""
    name = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
    return str(name).split(".")[0] in STARTERS
