"""The gate is calibrated by simulation, with the noise that was measured on shared machines."""

import pytest

from lrd_deploy.errors import UsageError
from lrd_deploy.gate.simulate import disjoint_rates, play, resampled_rates
from lrd_deploy.records import GatePolicy
from tests.gate.launches import CONDITIONS, simulated

POLICY = GatePolicy()


@pytest.mark.parametrize("condition", CONDITIONS)
def test_false_alarms_are_rare_and_slowdowns_are_found(condition):
    pool = simulated(200, condition)
    calm, slow, slower = (
        resampled_rates(pool, POLICY, slowdown=slowdown, gates=300, seed=1) for slowdown in (0.0, 0.05, 0.1)
    )
    assert calm.fail == 0.0
    assert calm.passed >= 0.95
    assert slow.fail >= (0.99 if condition == "calm" else 0.9)
    assert slower.fail == 1.0


def test_gates_that_share_no_launch_use_each_once():
    rates = disjoint_rates(simulated(120), POLICY, slowdown=0.0)
    assert rates.gates == 17  # six launches each, until a gate of 24 does not fit any more
    assert rates.mean_launches == 6.0
    assert rates.passed == 1.0


def test_a_simulated_slowdown_scales_the_candidate_only():
    plain, slowed = (play(simulated(24), POLICY, slowdown=slowdown) for slowdown in (0.0, 0.02))
    assert (1 + slowed.change) / (1 + plain.change) == pytest.approx(1.02)
    assert slowed.control == plain.control


def test_rates_are_the_same_again():
    pool = simulated(60, "bursty")
    again = [resampled_rates(pool, POLICY, slowdown=0.05, gates=50, seed=3) for _ in range(2)]
    assert again[0] == again[1]


def test_a_pool_too_small_for_one_gate_is_refused():
    with pytest.raises(UsageError, match="23 launches; at least 24, which one gate may take"):
        resampled_rates(simulated(23), POLICY, slowdown=0.0, gates=1, seed=1)
