import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrd_deploy.precision.ranges import BINS, Magnitudes


def histogram(*batches):
    found = Magnitudes(max(float(np.abs(batch).max()) for batch in batches))
    for batch in batches:
        found.update(batch)
    return found


def samples(seed, size=4000):
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), percent=st.floats(60, 100))
def test_a_percentile_is_that_of_the_magnitudes_to_a_bin(seed, percent):
    values = samples(seed)
    exact = np.quantile(np.abs(values), percent / 100, method="inverted_cdf")
    found = histogram(values)
    assert exact <= found.percentile(percent) + 1e-6 * exact
    assert found.percentile(percent) <= exact + 2 * found.largest / BINS
    assert found.percentile(100) == found.largest


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999))
def test_the_order_of_batches_and_their_sizes_are_nothing(seed):
    values = samples(seed, 40_000)
    one, other = histogram(values), histogram(values[30_000:], values[:10_000], values[10_000:30_000])
    np.testing.assert_array_equal(one.counts, other.counts)
    assert one.least_divergence() == other.least_divergence()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), exponent=st.integers(-20, 20))
def test_values_of_another_scale_have_the_range_of_that_scale(seed, exponent):
    values, factor = samples(seed, 40_000), 2.0**exponent
    scaled = histogram(values * np.float32(factor))
    for method in ("least_divergence", "percentile"):
        arguments = (99.0,) if method == "percentile" else ()
        assert getattr(scaled, method)(*arguments) == getattr(histogram(values), method)(*arguments) * factor


def test_entropy_clips_an_outlier_and_keeps_what_is_evenly_spread():
    spread = np.linspace(-1, 1, 100_000, dtype=np.float32)
    assert histogram(spread).least_divergence() > 0.9
    assert histogram(samples(0, 100_000), np.float32([40.0])).least_divergence() < 20


@pytest.mark.parametrize("size", [100, 1344, 16_000])
def test_entropy_clips_nothing_where_it_saw_too_little(size):
    """A sparse histogram agrees best with itself clipped hard: a ViT on 24 samples lost half of its logits to that."""
    assert histogram(samples(0, size), np.zeros(50_000, np.float32)).least_divergence() is None


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), factor=st.sampled_from([300, 3000, 3e6]))
def test_one_huge_outlier_does_not_keep_entropy_from_clipping_it(seed, factor):
    values = samples(seed, 50_000)
    alone = histogram(values).least_divergence()
    found = histogram(values, np.float32([factor]) * np.abs(values).max()).least_divergence()
    assert alone / 2 < found < 2 * alone


def test_many_large_values_are_no_outliers():
    values = samples(0, 50_000)
    many = np.full(500, 3000, np.float32)
    found = histogram(values, many)
    assert found.least_divergence() is None  # what remains beside the lowest bin is too few


def test_zeros_change_no_range_by_entropy():
    values = samples(1, 40_000)
    assert histogram(values, np.zeros(50_000, np.float32)).least_divergence() == histogram(values).least_divergence()


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_one_value_alone_is_its_own_range(value):
    found = histogram(np.full(10, value, np.float32))
    assert found.least_divergence() is None
    assert found.percentile(99.99) in (0.0, value)
