"""The check of what reducers return: it passes every method of ours, on zeros and on values."""

import pytest

from framefold import BudgetError, check_reducer
from reducers.registry import names, parse
from reducers.trial import check_reduced
from tests.reducers.test_invariants import SPECS, reduce, tokens


@pytest.mark.parametrize("spec", SPECS)
def test_result_of_every_spec_has_the_interface(spec: str) -> None:
    """Clips of several lengths together."""
    seen, method = tokens(3, (8, 5), grid=(6, 6)), parse(spec)
    check_reduced(seen, reduce(method, seen))


@pytest.mark.parametrize("name", names())
def test_every_method_passes_the_trial_on_zeros(name: str) -> None:
    check_reducer(parse(name), frames=8, grid=(8, 8), width=64, heads=4)


def test_trial_says_that_a_method_cannot_work_on_such_clips() -> None:
    with pytest.raises(BudgetError, match="needs a patch for each of 17 frames"):
        check_reducer(parse("hired(rate=0.2,frame_score=mosaic)"), frames=17, grid=(4, 4), width=32, heads=2)
