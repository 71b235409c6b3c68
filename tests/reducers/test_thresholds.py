"""Thresholds from a sample: the shares that were asked for, and specs that parse."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reducers.base import ReducerError, ReducerSpecError
from reducers.ops.similarity import above
from reducers.registry import parse
from reducers.thresholds import RULES, Sample, Shares, below, calibrated, check, measures
from tests.reducers.test_invariants import tokens


def sample(seed: int = 0, clips: int = 6) -> Sample:
    found = []
    for number in range(clips):
        seen = tokens(seed + number, (5,))
        assert seen.cls is not None
        found.append(measures(seen.features, seen.cls))
    return Sample(values={name: torch.cat([one[name] for one in found]) for name in found[0]}, patches=16)


@given(values=st.lists(st.integers(0, 9), min_size=2, max_size=60), share=st.floats(0.01, 0.95))
def test_at_least_the_share_lies_above_a_threshold_and_no_higher_value_has_it(values: list[int], share: float) -> None:
    """However many values are equal."""
    tau, wanted = above(torch.tensor(values).float(), share), round(share * len(values))
    assert tau in values
    if sum(value > min(values) for value in values) < wanted:
        assert tau == min(values)
        return
    assert sum(value > tau for value in values) >= wanted
    assert all(sum(other > value for other in values) < wanted for value in values if value > tau)
    assert below(-torch.tensor(values).float(), share) == -tau


def test_a_corpus_that_stands_still_still_counts_as_static() -> None:
    """Most cosines are 1: a threshold of 1 would call nothing the same."""
    values = torch.cat([torch.ones(90), torch.linspace(0.2, 0.9, 10)])
    assert above(values, 0.5) == pytest.approx(0.9)


def test_measures_are_cosines_of_the_right_pairs() -> None:
    """Against loops."""
    seen = tokens(3, (4,))
    assert seen.cls is not None
    found = measures(seen.features, seen.cls)
    cosine = torch.nn.functional.cosine_similarity
    place = [float(cosine(seen.features[f, n], seen.features[f + 1, n], dim=0)) for f in range(3) for n in range(16)]
    means = [float(cosine(seen.features[f].mean(0), seen.features[f + 1].mean(0), dim=0)) for f in range(3)]
    vectors = [float(cosine(seen.cls[f], seen.cls[f + 1], dim=0)) for f in range(3)]
    pairs = [float(cosine(seen.features[2, i], seen.features[2, j], dim=0)) for i in range(16) for j in range(i + 1, 16)]
    for name, expected in (("same_place", place), ("frames", means), ("frame_vectors", vectors), ("patches", pairs)):
        torch.testing.assert_close(found[name], torch.tensor(expected).double(), atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("retention", [0.25, 0.1])
def test_a_spec_comes_back_with_its_budget_and_thresholds_and_parses(name: str, retention: float) -> None:
    """A composition keeps its second part; parameters that were given stay."""
    given = f"{name}(keep_cls=false)" + ("+prumerge+(knn=4)" if name in ("static", "tree") else "")
    spec, thresholds = calibrated(given, sample(), retention, Shares())
    reducer = parse(spec)
    config = reducer.config.first.params if "|" in spec else reducer.config
    assert config.ratio == retention
    assert config.keep_cls is False
    assert thresholds.keys() == RULES[name].keys()
    assert all(getattr(config, key) == value for key, value in thresholds.items())
    assert getattr(config, "tau_mode", "quantile") == "quantile" or name == "fastvid"
    assert ("|prumerge+(knn=4)" in spec) == (name in ("static", "tree"))


@pytest.mark.parametrize("static", [0.2, 0.5, 0.8])
def test_thresholds_give_the_shares_that_were_asked_for(static: float) -> None:
    """Counted on the sample itself."""
    drawn, shares = sample(clips=20), Shares(static=static, cut=0.25)
    _, tau = calibrated("flashvid", drawn, 0.25, shares)
    place, frames = drawn.values["same_place"], drawn.values["frames"]
    assert float((place > tau["tau"]).double().mean()) == pytest.approx(static, abs=1 / len(place))
    assert float((frames < tau["segment_tau"]).double().mean()) == pytest.approx(0.25, abs=1 / len(frames))
    _, apart = calibrated("unicomp", drawn, 0.25, shares)
    near = float((1 - drawn.values["patches"] < apart["spatial_uniqueness"]).double().mean())
    assert near == pytest.approx(1 / (0.25 * 16), abs=0.01)
    assert float((1 - frames <= apart["frame_uniqueness"]).double().mean()) == pytest.approx(static, abs=2 / len(frames))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("prumerge", "no threshold to calibrate, expected one of holitom"),
        ("evs", "no threshold to calibrate"),
        ("evs|visionzip", "no threshold to calibrate"),
        ("magic", "unknown reducer"),
        ("holitom(tau=0.5)", "leave it out"),
        ("holitom(ratio=0.5)", "leave it out"),
        ("flashvid(segment_tau=0.5)", "segment_tau is set by the calibration"),
        ("flashvid(tau_mode=quantile, tau=0.9)", "leave it out"),
        ("holitom( tau_mode = absolute )", "tau_mode is set by the calibration"),
        ("static(keep=64)|hired", "leave it out"),
    ],
)
def test_what_has_nothing_to_find_is_refused(spec: str, said: str) -> None:
    """In one line."""
    with pytest.raises(ReducerSpecError, match=said):
        check(spec)


def test_shares_lie_between_nothing_and_all() -> None:
    """And a sample without pairs has no threshold."""
    with pytest.raises(ReducerError, match="shares in"):
        Shares(static=1.0)
    with pytest.raises(ReducerError, match="two frames or more"):
        above(torch.zeros(0), 0.5)


@pytest.mark.parametrize("name", ["static", "cut"])
@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, float("nan")])
def test_shares_that_no_threshold_can_have_are_refused(name: str, share: float) -> None:
    """All and nothing are none."""
    with pytest.raises(ReducerError, match=r"shares in \(0, 1\)"):
        Shares(**{name: share})


def flat(**values: float) -> Sample:
    names = ("same_place", "frames", "frame_vectors", "patches")
    return Sample(values={name: torch.full((8,), values.get(name, 0.5)).double() for name in names}, patches=16)


def test_each_method_is_cut_where_it_compares() -> None:
    """fastvid by its CLS rows, flashvid by mean patches."""
    drawn = flat(frames=0.25, frame_vectors=0.75)
    assert calibrated("fastvid", drawn, 0.25, Shares())[1] == {"tau": 0.75}
    assert calibrated("flashvid", drawn, 0.25, Shares())[1] == {"tau": 0.5, "segment_tau": 0.25}


def test_thresholds_are_what_the_spec_says_to_the_last_digit() -> None:
    """Six digits, and no uniqueness below nothing where rounding leaves a cosine above 1."""
    for cosine in (0.123457, 0.3, 0.7, 1.000001):
        spec, found = calibrated("unicomp", flat(frames=cosine, patches=cosine), 0.25, Shares())
        assert found == dict.fromkeys(found, max(0.0, round(1 - cosine, 6)))
        config = parse(spec).config
        assert (config.frame_uniqueness, config.spatial_uniqueness) == tuple(found.values())
