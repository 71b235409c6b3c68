"""How compositions are written: what their fingerprints and their needs hold, and what is refused."""

import json
from dataclasses import replace
from itertools import product

import pytest

from reducers.base import ReducerError, ReducerSpecError
from reducers.compose.selectors import FIRST
from reducers.compose.spenders import SECOND
from reducers.ops.clip_budget import ATTENTION
from reducers.registry import parse
from tests.reducers.test_invariants import tokens


def test_prumerge_merges_by_mean_behind_trees_and_adds_elsewhere() -> None:
    """Said in the fingerprint, so that the default cannot change behind a store's back."""
    assert '"merge":"mean"' in parse("tree+prumerge").fingerprint()
    assert '"merge":"add"' in parse("evs+prumerge").fingerprint()


@pytest.mark.parametrize(("first", "second"), list(product(FIRST, SECOND)))
def test_either_sign_joins_and_the_fingerprint_holds_both_parts(first: str, second: str) -> None:
    """Names that end in a plus sign stay whole."""
    made = parse(f"{first}|{second}")
    assert made.name == f"{first}|{second}"
    for spelled in (f"{first}+{second}", f" {first} ( ) + {second}( )", f"{first}(ratio=1/4)|{second}"):
        assert parse(spelled).fingerprint() == made.fingerprint()
    described = json.loads(made.fingerprint())
    for part, name in (("first", first), ("second", second)):
        assert described["params"][part]["name"] == name
        assert described["params"][part]["version"] >= 1
    assert set(described["params"]["first"]["params"]) == set(vars(made.config.first.params))
    assert set(described["params"]["second"]["params"]) == set(vars(made.config.second.params))
    assert parse(f"{first}(keep=9)|{second}").fingerprint() != made.fingerprint()


@pytest.mark.parametrize(("first", "second"), list(product(FIRST, SECOND)))
def test_every_composition_reads_the_attention_that_first_parts_weigh(first: str, second: str) -> None:
    """Also where the second part looks at another block."""
    assert ATTENTION in parse(f"{first}|{second}").needs


def test_five_tokens_of_visionzip_are_dominant_to_one_that_is_not() -> None:
    """Unless told otherwise; said in the fingerprint."""
    params = json.loads(parse("alloc|visionzip").fingerprint())["params"]["second"]["params"]
    assert (params["dominant"], params["contextual"]) == (5, 1)


def test_the_tower_is_asked_for_what_either_part_reads() -> None:
    """And a capture that it did not take is named."""
    kinds = {(need.kind, need.block, need.heads) for need in parse("static(block=visionzip)|prumerge").needs}
    read = [("cls_attn", "selected", "sum"), ("keys", "selected", "mean")]
    assert kinds == {*read, ("cls_attn", "next", "concat"), ("keys", "next", "concat")}
    batch = tokens(0, (3,))
    held = {need: value for need, value in batch.captures.items() if need.block != "next"}
    with pytest.raises(ReducerError, match="expected capture"):
        parse("alloc+prumerge").reduce(replace(batch, captures=held))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("alloc", "stands before another"),
        ("alloc|", "expected a reducer such as"),
        ("|visionzip", "expected a reducer such as"),
        ("alloc visionzip", "expected a reducer such as"),
        ("alloc(keep=8))|visionzip", "expected a reducer such as"),
        ("alloc||visionzip", "expected a reducer such as"),
        ("alloc+magic", "unknown part 'magic'"),
        ("magic|visionzip", "unknown part 'magic'"),
        ("visionzip|evs", "expected one of alloc, evs, static, tree, then one of"),
        ("prumerge+visionzip", "got prumerge|visionzip"),
        ("alloc|evs", "then one of"),
        ("alloc|evs|visionzip", "got alloc|evs|visionzip"),
        ("nest|visionzip", "expected one of alloc"),
        ("evs|trim", "reads the question"),
        ("trim|visionzip", "reads the question"),
        ("alloc+tome", "inside the tower"),
        ("tome(keep=64)+visionzip", "inside the tower"),
        ("alloc(keep=0)+visionzip", "keep >= 1"),
        ("alloc(ratio=0)+visionzip", "ratio in (0, 1]"),
        ("alloc(ratio=1.5)+visionzip", "ratio in (0, 1]"),
        ("evs(keep=8, ratio=0.5)|visionzip", "keep or ratio"),
        ("evs(keep=8, widen=0.5)|visionzip", "widen >= 1"),
        ("evs(keep=8, compat=true)|visionzip", "unknown parameter"),
        ("alloc(loud)+visionzip", "unknown parameter 'loud'"),
        ("alloc(weights=loud)+visionzip", "uniform|vcast|unicomp|novelty"),
        ("alloc(vcast, temperature=0)+hired", "temperature > 0"),
        ("alloc(uniform, vcast)+hired", "twice"),
        ("static(tau=2)|hired", "tau in [-1, 1]"),
        ("static(tau_mode=quantile)|hired", "calibrated_tau"),
        ("static(neighbours=0)|hired", "neighbours"),
        ("tree(segments=0)|hired", "segments >= 1"),
        ("tree+prumerge(merge=add)", "merge=mean"),
        ("alloc(keep=64)+prumerge(ratio=0.5)", "set budget and CLS rows in the first part"),
        ("alloc(keep=64)+prumerge(residual=true)", "set budget and CLS rows in the first part"),
        ("alloc(keep=64)+prumerge(knn=-1)", "knn"),
        ("evs(keep=64)|hired(rate=0.5)", "set budget and CLS rows in the first part"),
        ("evs(keep=64)|visionzip(keep_cls=false)", "set budget and CLS rows in the first part"),
        ("evs(keep=64)|visionzip(dominant=0, contextual=0)", "one of them above"),
        ("evs|visionzip(dominant=14, contextual=3)", "only a proportion"),
        ("evs(keep=8)|visionzip(dominant=-1, contextual=7)", "of at least 0"),
        ("evs(keep=8)|visionzip(dominant=7, contextual=-1)", "of at least 0"),
    ],
)  # fmt: skip
def test_a_composition_that_cannot_be_is_refused_in_one_line(spec: str, said: str) -> None:
    """When it is parsed, before anything is read."""
    with pytest.raises(ReducerSpecError) as caught:
        parse(spec)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
