"""A store that holds several fingerprints: commands show all of them, or those of a reducer."""

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

import framefold
from jobs.commands.answer import main as answer_main
from jobs.commands.store import main
from pipeline.errors import ConfigError
from pipeline.store.token_store import TokenStore
from reducers.base import describe
from reducers.registry import parse
from tests.tables import SPEC, encoded, failed, row

REDUCERS = {"nest(keep=256)": ["a"], "nest(keep=64)": ["a", "b"], "spatial(k=4)": ["b", "c"]}


def spec(reducer: str) -> dict[str, Any]:
    return {**SPEC, "reducer": json.loads(json.dumps(describe(parse(reducer))))}


@pytest.fixture
def store(tmp_path: Path) -> str:
    for reducer, names in REDUCERS.items():
        TokenStore.create(str(tmp_path), spec(reducer)).commit(encoded([*(row(name) for name in names), failed("broken")]))
    return str(tmp_path)


def said(*args: str) -> tuple[list[str], dict[str, Any]]:
    """Return the lines before the report, and the report."""
    with redirect_stdout(io.StringIO()) as out:
        assert main(args) == 0
    *lines, report = out.getvalue().splitlines()
    return lines, json.loads(report)


def test_ls_lists_all_fingerprints_with_a_column(store: str) -> None:
    lines, report = said("ls", store)
    assert len(lines) == 8
    last = {line.split("\t")[1]: set() for line in lines}
    for line in lines:
        last[line.split("\t")[1]].add(line.split("\t")[-1].split()[1])
    assert last == {"a": {"nest"}, "b": {"nest", "spatial"}, "c": {"spatial"}, "broken": {"nest", "spatial"}}
    assert sorted(found["committed"] for found in report["fingerprints"]) == [1, 2, 2]


def test_ls_of_one_fingerprint_has_no_further_column(store: str) -> None:
    lines, report = said("ls", store, "--reducer", "spatial(k=4)")
    assert {len(line.split("\t")) for line in lines} == {4}
    assert (report["committed"], report["failed"]) == (2, 1)


@pytest.mark.parametrize(("reducer", "count"), [("nest", 2), ("nest(keep=64)", 1), ("spatial", 1), ("trim", 0)])
def test_reducer_selects_by_spec_or_by_name_alone(reducer: str, count: int, store: str) -> None:
    if count:
        assert len(said("stats", store, "--reducer", reducer)[1]["specs"]) == count
    else:
        assert main(["stats", store, "--reducer", reducer]) == 2


def test_show_lists_every_entry_of_a_video(store: str) -> None:
    _, report = said("show", store, "b")
    assert {found["video_id"] for found in report["fingerprints"]} == {"b"}
    assert len(report["fingerprints"]) == 2
    assert said("show", store, "c")[1]["fingerprints"][0]["shape"] == [6, 4]
    assert main(["show", store, "nobody"]) == 2


def test_open_by_reducer_needs_exactly_one(store: str) -> None:
    assert TokenStore.open(store, reducer="spatial").ids() == ["b", "c"]
    assert TokenStore.open(store, reducer="nest(keep=256)").ids() == ["a"]
    with pytest.raises(ConfigError, match="2 fingerprints match reducer 'nest'"):
        TokenStore.open(store, reducer="nest")
    with pytest.raises(ConfigError, match="--reducer: "):
        TokenStore.open(store, reducer="nest(kep=1)")


def test_answer_and_library_choose_entries_by_reducer(store: str, tmp_path: Path) -> None:
    chosen = framefold.TokenStore.open(store, reducer="spatial(k=4)")
    assert chosen.fingerprint == TokenStore.open(store, reducer="spatial").fingerprint
    questions = tmp_path / "q.csv"
    questions.write_text("video_id,question\na,what is it\n")
    model = str(Path(__file__).parents[2] / "pipeline" / "synthetic" / "checkpoint")
    flags = ("--store", store, "--out", str(tmp_path / "out"), "--model", model, "--runner", "local", "--reducer", "nest")
    with redirect_stderr(io.StringIO()) as err:
        assert answer_main([str(questions), *flags]) == 2
    assert "2 fingerprints match reducer 'nest'" in err.getvalue()


def test_name_of_a_reducer_that_is_not_installed_selects(store: str) -> None:
    TokenStore.create(store, {**SPEC, "reducer": {"name": "foreign", "version": 3, "params": {}}}).commit(encoded([row("z")]))
    assert TokenStore.open(store, reducer="foreign").ids() == ["z"]


def test_verify_checks_the_entries_of_a_reducer(store: str) -> None:
    assert said("verify", store, "--reducer", "spatial")[1]["ok"] is True
    assert main(["verify", store, "--reducer", "nest"]) == 2
