from itertools import cycle, repeat

import numpy as np

from lrd_deploy.gate.sequence import gather, most_launches
from lrd_deploy.records import CaseEvidence, GatePolicy
from tests.gate.launches import launch


def case(name="batch 8"):
    return CaseEvidence(name=name, batch=8, threads=1)


def around(change, spread=0.002):
    """Launches around a change, alternating, without end."""
    return (launch(np.log1p(change) + step, step / 2) for step in cycle([-spread, spread]))


def taken(sources, policy=None):
    kept = []
    gather([case(name) for name in sources], sources, policy or GatePolicy(), lambda *what: kept.append(what[:2]))
    return kept


def test_a_clear_pass_takes_the_first_look_only():
    assert taken({"batch 8": around(0.0)}) == [("batch 8", "launches")] * 6


def test_a_failure_takes_a_second_set_of_its_own():
    assert taken({"batch 8": around(0.1)}) == [("batch 8", "launches")] * 6 + [("batch 8", "confirming")] * 6


def test_without_confirmation_a_failure_ends_it():
    assert len(taken({"batch 8": around(0.1)}, GatePolicy(confirm=False))) == 6


def test_what_cannot_be_decided_takes_all_and_no_more():
    assert len(taken({"batch 8": around(0.04, spread=0.3)})) == 12


def test_launches_are_added_two_by_two():
    steps = [0.2, -0.2, 0.2, -0.2, 0.2, -0.2]  # the first look cannot tell; two calm launches more, and it can
    source = (launch(value) for value in [*steps, *repeat(0.0, 100)])
    assert len(taken({"batch 8": source})) in {8, 10, 12}


def test_only_the_cases_that_fail_are_measured_again():
    kept = taken({"batch 1": around(0.0), "batch 8": around(0.1)})
    assert kept.count(("batch 8", "confirming")) == 6
    assert ("batch 1", "confirming") not in kept


def test_a_case_that_is_decided_waits_for_the_others():
    kept = taken({"batch 1": around(0.0), "batch 8": around(0.04, spread=0.3)})
    assert kept.count(("batch 1", "launches")) == 6
    assert kept.count(("batch 8", "launches")) == 12


def test_the_largest_number_of_launches():
    assert most_launches(GatePolicy(most_launches=10)) == 20
    assert most_launches(GatePolicy(most_launches=10, confirm=False)) == 10
