"""The gate, replayed on launches that were measured: `benchmarks/gate.py` recorded them on a shared 2-core machine."""

from pathlib import Path

import pytest

from lrd_deploy.gate.simulate import disjoint_rates, resampled_rates
from lrd_deploy.records import GatePolicy, LaunchPool

RECORDED = sorted((Path(__file__).parent / "recorded").glob("*.json"))
POLICY = GatePolicy()


def pools(slowdown):
    found = [LaunchPool.read(path) for path in RECORDED]
    return [pytest.param(pool, id=pool.what) for pool in found if pool.slowdown == slowdown]


def rates(pool):
    """Two hundred gates on launches drawn anew, and as many as share none. The candidates really computed more."""
    drawn = resampled_rates(pool.launches, POLICY, slowdown=0.0, gates=200, seed=1)
    return drawn, disjoint_rates(pool.launches, POLICY, slowdown=0.0)


@pytest.mark.parametrize("pool", pools(0.0))
def test_a_model_beside_itself_raises_no_alarm(pool):
    assert len(pool.rows) >= 100
    for found in rates(pool):
        assert found.gates >= 20
        assert found.fail * found.gates <= 1
        assert found.inconclusive <= 0.05


@pytest.mark.parametrize("pool", pools(0.05))
def test_five_percent_more_work_is_found(pool):
    assert len(pool.rows) >= 100
    for found in rates(pool):
        assert found.gates >= 20
        assert found.fail >= 0.99


@pytest.mark.parametrize("pool", pools(0.1))
def test_ten_percent_more_work_is_always_found(pool):
    assert len(pool.rows) >= 100
    for found in rates(pool):
        assert found.fail == 1.0


def test_pools_survive_a_round_trip_and_hold_what_was_measured():
    assert {(path.stem, LaunchPool.read(path).slowdown) for path in RECORDED} == {
        (f"{condition}-{percent}", percent / 100) for condition in ("idle", "busy") for percent in (0, 5, 10)
    }
    for path in RECORDED:
        pool = LaunchPool.read(path)
        again = LaunchPool.of(pool.launches, what=pool.what, slowdown=pool.slowdown, environment=pool.environment)
        assert again == pool
        assert path.stat().st_size < 32_768
