"""Rows of int8 against arithmetic in float64."""

import numpy as np
import pytest

from pipeline.store.quantize import from_int8, to_int8


def rows(seed: int = 0) -> np.ndarray:
    made = np.random.default_rng(seed).normal(size=(40, 24)) * np.logspace(-3, 3, 40)[:, None]
    return made.astype(np.float16)


def test_a_step_is_the_largest_magnitude_over_127() -> None:
    """And each value the nearest step, halves to the even one."""
    values, scales = to_int8(rows())
    wide = rows().astype(np.float64)
    scale = np.abs(wide).max(1) / 127
    np.testing.assert_allclose(np.frombuffer(scales, "<f4"), scale, rtol=1e-6)
    steps = np.frombuffer(values, np.int8).reshape(40, 24)
    assert np.abs(steps - wide / scale[:, None]).max() <= 0.5 + 1e-3
    assert (np.abs(steps).max(1) == 127).all()
    halves = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5]], np.float16)
    assert np.frombuffer(to_int8(halves)[0], np.int8).tolist() == [127, 0, 2, 2, 0, -2]


def test_what_comes_back_is_off_by_half_a_step_at_most() -> None:
    """1/254 of the row's largest value, and the rounding of float16."""
    back = from_int8(*to_int8(rows()))
    wide = rows().astype(np.float64)
    most = np.abs(wide).max(1, keepdims=True)
    assert back.dtype == np.float16
    assert (np.abs(back - wide) <= most / 254 + most * 2.0**-11).all()


@pytest.mark.filterwarnings("error")
def test_a_row_of_zeros_comes_back_as_zeros() -> None:
    """Without a division by it."""
    some = rows()[:3].copy()
    some[1] = 0
    values, scales = to_int8(some)
    assert np.frombuffer(scales, "<f4")[1] == 0
    assert np.frombuffer(values, np.int8).reshape(3, -1)[1].tolist() == [0] * 24
    assert from_int8(values, scales)[1].tolist() == [0] * 24


@pytest.mark.parametrize("shape", [(0, 24), (3, 0)])
def test_no_rows_and_no_columns_are_no_bytes(shape: tuple[int, int]) -> None:
    """Scales are told all the same, one for each row."""
    values, scales = to_int8(np.zeros(shape, np.float16))
    assert (values, len(scales)) == (b"", 4 * shape[0])
    assert from_int8(values, scales).size == 0
