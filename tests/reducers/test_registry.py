"""Spec strings: what parses, and what is refused in one line."""

import pytest

from reducers.base import ReducerSpecError
from reducers.registry import names, parameters, parse


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


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("", "expected a reducer"),
        ("prumerge+(", "expected a reducer"),
        ("magic", "expected one of none"),
        ("spatial(q=1)", "expected some of k"),
        ("spatial(k=1, k=2)", "twice"),
        ("spatial(k=many)", "expected k to be int"),
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
