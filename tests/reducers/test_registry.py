"""Spec strings: what parses, and what is refused in one line."""

from dataclasses import dataclass
from typing import Literal

import pytest

from reducers.base import ReducerSpecError
from reducers.registry import names, parameters, parse
from reducers.spec import Term, arguments


@pytest.mark.parametrize("name", names())
def test_every_name_parses_with_its_defaults(name: str) -> None:
    """And knows its parameters."""
    assert parse(name).name == name
    assert parse(f" {name}( ) ").config == parse(name).config
    assert parameters(name).keys() == vars(parse(name).config).keys()


def test_values_are_parsed_by_their_types() -> None:
    """Fractions, booleans, choices, integers."""
    config = parse("prumerge+(ratio=1/8, residual=false, merge=mean, knn=5)").config
    assert (config.ratio, config.residual, config.merge, config.knn) == (0.125, False, "mean", 5)
    assert parse("prumerge+(residual=TRUE)").config.residual is True
    assert parse("tome(keep=None, r=2)").config == parse("tome(r=2)").config == parse("tome(keep=none, r=2)").config


@pytest.mark.parametrize(
    "spec", ["alloc+prumerge+", "alloc + prumerge+", "alloc+ prumerge+", " alloc |prumerge+ ", "alloc() + prumerge+()"]
)
def test_a_plus_sign_joins_two_names_or_belongs_to_one(spec: str) -> None:
    """Whatever blanks stand around it."""
    assert parse(spec).name == "alloc|prumerge+"


def test_a_word_that_two_parameters_know_does_not_stand_alone() -> None:
    """Nobody could tell which one is meant."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        first: Literal["one", "both"] = "one"
        second: Literal["two", "both"] = "two"

    assert arguments(Term(name="x", arguments="two, first=both"), Config) == {"first": "both", "second": "two"}
    with pytest.raises(ReducerSpecError, match="unknown parameter 'both'"):
        arguments(Term(name="x", arguments="both"), Config)


@pytest.mark.parametrize("word", ["mean", "'mean'", '"mean"'])
def test_a_choice_may_stand_in_quotes_and_alone(word: str) -> None:
    """As shells and people write them; alone where just one parameter has it."""
    assert parse(f"prumerge+(merge={word})").config.merge == "mean"
    assert parse("prumerge+(mean)").config == parse("prumerge+(merge=mean)").config


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("", "expected a reducer"),
        ("prumerge+(", "expected a reducer"),
        ("magic", "expected one of none"),
        ("spatial(q=1)", "expected some of k"),
        ("spatial(k=1, k=2)", "twice"),
        ("spatial(k=many)", "expected k to be int"),
        ("spatial(k=2.0)", "expected k to be int"),
        ("spatial(k=1/2)", "expected k to be int"),
        ("evs,visionzip", "expected a reducer"),
        ("spatial(k=1))", "expected a reducer"),
        ("spatial(k=0)", "k"),
        ("prumerge(ratio=0)", "ratio"),
        ("prumerge(ratio=1/0)", "ratio"),
        ("prumerge(ratio=nan)", "ratio to be float"),
        ("vcast(temperature=inf)", "temperature to be float"),
        ("prumerge(merge=stir)", "add|mean"),
        ("prumerge(scope=batch)", "compat"),
        ("prumerge(residual=perhaps)", "bool"),
        ("visionzip(dominant=0)", "dominant"),
        ("hired(rate=2)", "rate"),
        ("hired(frame_score=loud)", "uniform|mosaic"),
        ("trim(ratio=0)", "ratio"),
        ("trim(scope=batch)", "compat"),
        ("tome(keep=8, r=2)", "not both"),
        ("visionzip(score=loud)", "cls|received"),
    ],
)
def test_a_wrong_spec_is_refused_with_what_is_known(spec: str, said: str) -> None:
    """One line, before anything is read."""
    with pytest.raises(ReducerSpecError) as caught:
        parse(spec)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
