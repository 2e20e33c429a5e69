import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrd_deploy.precision.rounding import HalfRounding


def problem(*arrays):
    found = HalfRounding()
    for array in arrays:
        found.update(np.asarray(array, np.float32))
    return found.problem()


@settings(max_examples=50, deadline=None)
@given(exponent=st.integers(-13, 14), seed=st.integers(0, 999))
def test_values_within_the_normal_range_are_no_problem(exponent, seed):
    values = np.random.default_rng(seed).uniform(1.0, 1.9, 64) * 2.0**exponent
    assert problem(values, -values) is None


def test_a_value_beyond_half_of_the_largest_is_told_with_its_size():
    assert problem([1, 2], [-40000]) == "reaches 4e+04, and FP16 holds 65504"
    assert problem([1e30]) == "reaches 1e+30, and FP16 holds 65504"


def test_a_tensor_that_vanishes_is_told_and_a_few_small_values_beside_large_ones_are_not():
    assert problem([1e-9, 2e-9]) == "loses 100.0% to values that FP16 has no digits for"
    assert problem([1.0, 1e-9, 1e-9]) is None


@pytest.mark.parametrize("values", [[0, 0], [], [np.inf, -np.inf, 1.0]], ids=["zeros", "nothing", "infinities"])
def test_what_fp16_holds_exactly_is_no_problem(values):
    assert problem(values) is None


def test_it_does_not_matter_how_values_come_in_batches():
    values = np.random.default_rng(0).standard_normal(60).astype(np.float32) * 1e-6
    parts = HalfRounding()
    for part in np.split(values, 6):
        parts.update(part)
    whole = HalfRounding()
    whole.update(values)
    assert parts.relative_error == pytest.approx(whole.relative_error, rel=60 * np.finfo(np.float64).eps)
    assert parts.largest == whole.largest
