from collections import Counter
from itertools import chain, count, cycle, repeat
from pathlib import Path

import pytest

from lrd_deploy.bench.launch import balanced_order, interleave, round_orders, solo, timed, warm_up
from lrd_deploy.bench.statistics import block_log_ratio
from lrd_deploy.engines import SessionSettings
from lrd_deploy.engines.fake import FakeBackend
from lrd_deploy.errors import BackendError


def calls(**scripts):
    backend = FakeBackend({name: iter(script) for name, script in scripts.items()})
    bound = {name: backend.load(Path(name), SessionSettings()).bind({}) for name in scripts}
    return backend, bound


def run(backend, bound, **changes):
    options = {"rounds": 10, "arm_seconds": 100.0, "reverse_first": False} | changes
    return interleave(bound, backend.clock, **options)


def test_a_known_ratio_is_found_exactly():
    backend, bound = calls(base=repeat(6.0), candidate=repeat(2.0), control=repeat(6.0))
    blocks, _, converged = run(backend, bound)
    assert converged
    assert block_log_ratio(blocks["base"], blocks["candidate"]) == pytest.approx(1.0986, abs=1e-4)
    assert block_log_ratio(blocks["base"], blocks["control"]) == 0.0


def test_the_call_after_each_switch_is_discarded():
    # The warm-up takes two calls, then windows of ten, so blocks of one and three calls stay in step with the script.
    backend, bound = calls(base=chain([5.0, 5.0], cycle([20.0, 5.0, 5.0, 5.0])), candidate=repeat(5.0))
    blocks, per_block, _ = run(backend, bound)
    assert per_block == 3
    assert {len(block) for block in blocks["base"]} == {3}


def test_rounds_go_through_every_rotation_and_its_reverse():
    backend, bound = calls(a=repeat(5.0), b=repeat(5.0))
    run(backend, bound, rounds=8)
    assert backend.log[-8 * 2 * 4 :: 4] == ["a", "b", "b", "a", "b", "a", "a", "b"] * 2


def test_the_first_direction_can_be_reversed():
    backend, bound = calls(a=repeat(5.0), b=repeat(5.0))
    run(backend, bound, rounds=8, reverse_first=True)
    assert backend.log[-8 * 2 * 4 :: 4] == ["b", "a", "a", "b", "a", "b", "b", "a"] * 2


@pytest.mark.parametrize("arms", ["ab", "abc"])
def test_no_arm_has_a_better_place_or_better_company(arms):
    orders = round_orders(list(arms))
    places = Counter((arm, place) for order in orders for place, arm in enumerate(order))
    assert set(places.values()) == {2}
    sequence = [arm for order in orders for arm in order]
    after = Counter(zip(sequence, [*sequence[1:], sequence[0]], strict=True))
    assert len({after[arm, arm] for arm in arms}) == 1
    others = [after[arm, other] for arm in arms for other in arms if other != arm]
    assert max(others) - min(others) <= 1


@pytest.mark.parametrize(("slower", "per_block"), [(0.01, 50), (0.5, 20), (5.0, 3), (24.0, 3), (25.0, 2)])
def test_blocks_of_a_fast_model_hold_more_calls(slower, per_block):
    backend, bound = calls(a=repeat(slower), b=repeat(slower / 2))
    assert run(backend, bound)[1] == per_block  # 10 ms of the slower arm, 50 calls at most


@pytest.mark.parametrize(("arms", "rounds"), [("ab", 8), ("abc", 6)])
def test_a_slow_model_gets_fewer_rounds_but_six_at_least_in_whole_cycles(arms, rounds):
    backend, bound = calls(**{arm: repeat(50.0) for arm in arms})
    blocks, _, _ = run(backend, bound, rounds=40, arm_seconds=1.0)
    assert len(blocks["a"]) == rounds


def test_rounds_are_whole_cycles():
    backend, bound = calls(a=repeat(1.0), b=repeat(1.0), c=repeat(1.0))
    assert len(run(backend, bound, rounds=40)[0]["a"]) == 36


def test_warm_up_goes_on_until_latency_settles():
    settling = [20 - 0.2 * n for n in range(50)]
    backend, bound = calls(a=[*settling, *repeat(10.0, 1000)])
    latency, converged = warm_up(bound["a"], backend.clock)
    assert converged
    assert latency == 10.0


def test_warm_up_gives_up_on_a_latency_that_never_settles():
    backend, bound = calls(a=(float(1 + n) for n in range(10**6)))
    _, converged = warm_up(bound["a"], backend.clock, most_seconds=2.0)
    assert not converged


def test_a_slow_model_warms_up_in_fewer_calls():
    backend, bound = calls(fast=repeat(1.0), slow=repeat(50.0))
    for name in bound:
        warm_up(bound[name], backend.clock)
    assert Counter(backend.log) == {"fast": 2 + 10 * 10, "slow": 2 + 2 * 5}


@pytest.mark.parametrize("step", [0, -3])
def test_a_clock_that_does_not_move_forwards_is_told(step):
    readings = count(10**6, step) if step else repeat(10**6)
    with pytest.raises(BackendError, match=f"timing a call: {step} ns by this machine's monotonic clock"):
        timed(lambda: None, lambda: next(readings), 3)


def test_solo_runs_long_enough_and_often_enough():
    backend, bound = calls(fast=repeat(1.0), slow=repeat(100.0))
    assert len(solo(bound["fast"], backend.clock, 0.4)) == 400
    assert len(solo(bound["slow"], backend.clock, 0.4)) == 20


@pytest.mark.parametrize("launches", [2, 4, 6, 8, 12])
def test_base_and_candidate_are_loaded_in_the_same_places_equally_often(launches):
    orders = [balanced_order(("base", "candidate", "control"), number) for number in range(launches)]
    base, candidate = (Counter(order.index(arm) for order, _ in orders) for arm in ("base", "candidate"))
    assert base == candidate


@pytest.mark.parametrize("arms", [("base",), ("base", "candidate"), ("base", "candidate", "control")])
def test_every_arm_is_loaded_in_every_place_in_both_directions(arms):
    orders = [balanced_order(arms, number) for number in range(4 * len(arms))]
    places = Counter((order.index(arm), reverse, arm) for order, reverse in orders for arm in arms)
    assert len(places) == 2 * len(arms) ** 2
