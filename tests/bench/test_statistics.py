from math import exp, log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrd_deploy.bench.statistics import block_log_ratio, median, percentile_bound, ratio_with_interval

values = st.lists(st.floats(-1, 1), min_size=2, max_size=12)


@given(values)
def test_swapping_the_arms_inverts_the_ratio_and_its_interval(logs):
    one, other = ratio_with_interval(logs), ratio_with_interval([-value for value in logs])
    assert other.estimate == pytest.approx(1 / one.estimate)
    assert other.low == pytest.approx(1 / one.high)
    assert other.demonstrated == one.demonstrated


@given(values)
def test_the_interval_holds_the_estimate_and_widens_with_confidence(logs):
    narrow, wide = (ratio_with_interval(logs, confidence=confidence) for confidence in (0.9, 0.99))
    assert wide.low <= narrow.low <= narrow.estimate <= narrow.high <= wide.high


@pytest.mark.parametrize("launches", [4, 6, 8, 12])
@pytest.mark.parametrize("heavy_tailed", [False, True])
def test_the_interval_covers_the_truth_as_often_as_it_says(launches, heavy_tailed):
    random = np.random.default_rng(launches)
    draws = 2000
    noise = random.standard_t(3, (draws, launches)) if heavy_tailed else random.standard_normal((draws, launches))
    covered = sum(
        ratio.low <= 2.0 <= ratio.high
        for ratio in (ratio_with_interval((log(2) + 0.02 * row).tolist()) for row in noise)
    )
    # 95 % nominal; four standard errors of a share of 2,000 below, and a t3 tail may only make it wider.
    assert covered / draws >= 0.95 - 4 * (0.95 * 0.05 / draws) ** 0.5


def test_identical_arms_are_demonstrated_to_differ_no_more_often_than_one_in_twenty():
    random = np.random.default_rng(0)
    ratios = [ratio_with_interval(row.tolist()) for row in 0.02 * random.standard_normal((2000, 8))]
    assert sum(ratio.demonstrated for ratio in ratios) / 2000 <= 0.05 + 4 * (0.95 * 0.05 / 2000) ** 0.5


def test_one_launch_with_a_busy_neighbour_does_not_move_the_estimate():
    calm = [log(2) + delta for delta in (-0.02, -0.01, 0.0, 0.01, 0.02, 0.0, 0.01)]
    ratio = ratio_with_interval([*calm, log(8)])
    assert ratio.estimate == pytest.approx(2, rel=0.01)
    assert ratio.high < 2.1


def test_a_ratio_of_one_is_not_demonstrated():
    assert not ratio_with_interval([0.01, -0.01, 0.02, -0.02]).demonstrated
    assert ratio_with_interval([0.1, 0.11, 0.09, 0.1]).demonstrated


def test_a_launch_takes_block_minima_and_the_median_over_rounds():
    base = [(4.0, 9.0), (5.0, 4.0), (100.0, 400.0)]
    candidate = [(2.0, 7.0), (2.0, 2.0), (2.0, 2.0)]
    assert exp(block_log_ratio(base, candidate)) == pytest.approx(2.0)


@pytest.mark.parametrize(("percentile", "enough"), [(0.9, 64), (0.99, 662)])
def test_a_percentile_is_stated_only_with_enough_samples_and_then_from_above(percentile, enough):
    assert percentile_bound(list(range(enough - 1)), percentile) is None
    assert percentile_bound(list(range(enough)), percentile) >= percentile * enough


def test_the_percentile_bound_lies_above_the_percentile_99_times_in_100():
    random = np.random.default_rng(1)
    truth = -np.log(0.1)  # p90 of the exponential distribution
    above = [percentile_bound(random.exponential(size=100).tolist(), 0.9) >= truth for _ in range(2000)]
    assert np.mean(above) >= 0.99 - 4 * (0.99 * 0.01 / 2000) ** 0.5


def test_median():
    assert median([3, 1, 2]) == 2
    assert median([4, 1, 2, 3]) == 2.5
