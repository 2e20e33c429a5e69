from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrd_deploy.ranks.allocate import Budget, Candidate, allocate, out_of_reach, undominated
from lrd_deploy.records import SVD, KeepDense


def options(seed, layers=4):
    """Dense and three random candidates per layer."""
    random = np.random.default_rng(seed)
    return [
        [
            Candidate(KeepDense(), 1.0, 0.0, 100),
            *(Candidate(SVD(rank=n), *random.uniform(0.2, 1.2, 2), int(random.integers(20, 120))) for n in (1, 2, 3)),
        ]
        for _ in range(layers)
    ]


def total(combination, name):
    return sum(getattr(candidate, name) for candidate in combination)


@pytest.mark.parametrize("seed", range(5))
def test_under_a_latency_budget_the_loss_is_the_least_of_all_combinations(seed):
    layers, budget = options(seed), Budget(latency_ms=2.5, parameters=320)
    allowed = [
        total(combination, "loss")
        for combination in product(*layers)
        if total(combination, "latency_ms") <= 2.5 and total(combination, "parameters") <= 320
    ]
    assert total(allocate(layers, budget), "loss") == pytest.approx(min(allowed), rel=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_under_a_loss_budget_the_latency_is_the_least_of_all_combinations(seed):
    layers = options(seed)
    allowed = [total(one, "latency_ms") for one in product(*layers) if total(one, "loss") <= 1.5]
    assert total(allocate(layers, Budget(loss=1.5)), "latency_ms") == pytest.approx(min(allowed), rel=1e-3)


@pytest.mark.parametrize("budget_ms", [0.1, 0.0, -5.0])
def test_a_budget_below_the_fastest_combination_has_no_answer(budget_ms):
    assert allocate(options(0), Budget(latency_ms=budget_ms)) is None


def test_the_error_for_a_budget_out_of_reach_names_the_nearest_in_reach():
    layers = [[Candidate(KeepDense(), 1.0, 0.0, 100), Candidate(SVD(rank=1), 0.16, 0.5, 25)]]
    message = str(out_of_reach(layers, "a speedup of 100"))
    assert "a speedup of 100; by themselves the candidates reach 6.25× and 25%" in message
    assert "ask for at most 6.25×" in message


@given(
    points=st.lists(st.tuples(*[st.integers(1, 9)] * 3), min_size=1, max_size=30),
    most=st.integers(2, 40),
)
def test_what_is_left_out_is_beaten_by_something_kept(points, most):
    candidates = [Candidate(SVD(rank=n + 1), *map(float, point)) for n, point in enumerate(points)]
    kept = undominated(candidates, most=len(candidates))
    for candidate in candidates:
        assert any(
            one.latency_ms <= candidate.latency_ms
            and one.loss <= candidate.loss
            and one.parameters <= candidate.parameters
            for one in kept
        )
    thinned = undominated(candidates, most=most)
    assert len(thinned) <= most
    assert set(thinned) <= set(kept)
