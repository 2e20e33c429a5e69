"""The verdict's laws, and its rule case by case."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrd_deploy.bench.environment import environment
from lrd_deploy.gate.judge import accuracy_drop, holm, judge, judge_cases, outputs_problems, read_control
from lrd_deploy.records import (
    GateArtefact,
    GateEvidence,
    GatePolicy,
    GateResult,
    OutputEvidence,
    ParityEvidence,
)
from tests.gate.launches import around, case, launch, simulated

POLICY = GatePolicy()
HERE = environment()
MODEL = GateArtefact(name="a.onnx", sha256="0" * 64)


def evidence(**changes):
    known = {"measured_at": "2026-01-01T00:00:00+00:00", "baseline": MODEL, "candidate": MODEL, "environment": HERE}
    return GateEvidence(**(known | changes))


def verdict_of(launches, confirming=(), policy=POLICY):
    return judge_cases([case(launches, confirming)], policy)[0]


def outputs(**changes):
    known = {"samples": 64, "rounding_tolerance": 1e-5, "relative_l2": 1e-7, "top1_agreement": 1.0}
    return OutputEvidence(**(known | changes))


# The rule ---------------------------------------------------------------------------------------------------------


def test_a_candidate_that_is_as_fast_passes():
    found = verdict_of(around(0.0))
    assert found.verdict == "PASS"
    assert "a slowdown of 5.0% is excluded" in found.reason
    assert found.high < 0.05


def test_a_slowdown_that_is_found_twice_fails():
    found = verdict_of(around(0.06), around(0.06))
    assert found.verdict == "FAIL"
    assert found.reason == "slower by +6.0%, more than 3.0% (0.6 of 5.0%), and again in a second set of launches"
    assert found.change == pytest.approx(0.06)


def test_a_certain_slowdown_below_the_threshold_does_not_fail():
    found = verdict_of(around(0.02, spread=0.001))
    assert found.low > 0
    assert found.verdict == "PASS"


def test_an_uncertain_slowdown_is_neither():
    found = verdict_of(around(0.04, spread=0.2))
    assert found.verdict == "INCONCLUSIVE"
    assert "neither found nor excluded" in found.reason
    assert found.min_detectable > 0.05


BY_FAR, JUST = around(0.08, spread=0.02), around(0.035, spread=0.01)


@pytest.mark.parametrize(
    ("first", "second", "verdict", "told"),
    [
        (JUST, around(0.0), "PASS", "excluded"),
        (BY_FAR, around(0.025), "INCONCLUSIVE", "the second set of launches did not fail"),
        (BY_FAR, around(0.04, spread=0.3), "INCONCLUSIVE", "the second set of launches could not tell"),
        (BY_FAR, (), "INCONCLUSIVE", "the second set of launches is missing"),
    ],
)
def test_a_failure_that_is_not_confirmed_does_not_fail(first, second, verdict, told):
    assert verdict_of(first, second, GatePolicy(confirm=False)).verdict == "FAIL"
    found = verdict_of(first, second)
    assert found.verdict == verdict
    assert told in found.reason


def test_without_confirmation_one_set_is_enough():
    assert verdict_of(around(0.06), policy=GatePolicy(confirm=False)).verdict == "FAIL"


def test_a_control_that_is_off_makes_it_inconclusive():
    found = verdict_of(around(0.0, control=0.04))
    assert found.verdict == "INCONCLUSIVE"
    assert found.reason.startswith("the machine was too busy: the baseline beside its own copy came out at +4.1%")


def test_a_slowdown_must_exceed_what_the_control_is_off_by():
    assert verdict_of(around(0.06, control=0.04), around(0.06, control=0.04)).verdict == "INCONCLUSIVE"
    assert verdict_of(around(0.12, control=0.04), around(0.12, control=0.04)).verdict == "FAIL"


def test_a_control_is_off_by_half_the_threshold_only_with_near_certainty():
    assert read_control(around(0.0, control=0.017, spread=0.06), POLICY).trusted
    assert not read_control(around(0.0, control=0.017, spread=0.001), POLICY).trusted
    assert not read_control(around(0.0, control=0.031, spread=0.5), POLICY).trusted


def test_too_few_launches_are_unfinished():
    found = verdict_of(around(0.0, count=5))
    assert found.verdict == "INCONCLUSIVE"
    assert found.reason == "unfinished: 5 of at least 6 launches"
    assert found.change is None


@pytest.mark.parametrize("wild", [-8.0, 8.0])
def test_one_launch_with_a_busy_neighbour_changes_no_verdict(wild):
    calm = around(0.0, spread=0.01)
    assert verdict_of((*calm[:-1], launch(wild, 0.0))).verdict == "PASS"


# Laws -------------------------------------------------------------------------------------------------------------

changes = st.lists(st.floats(-0.3, 0.3), min_size=6, max_size=12)


@given(changes)
def test_swapping_the_arms_turns_a_failure_into_a_pass(logs):
    policy = GatePolicy(confirm=False)
    forwards = verdict_of([launch(value) for value in logs], policy=policy)
    backwards = verdict_of([launch(-value) for value in logs], policy=policy)
    assert {forwards.verdict, backwards.verdict} != {"FAIL"}
    assert (1 + forwards.change) * (1 + backwards.change) == pytest.approx(1.0)
    if forwards.verdict == "FAIL":
        assert backwards.verdict == "PASS"


@given(changes, st.floats(0.0, 0.5))
def test_a_slower_candidate_never_gets_a_better_verdict(logs, more):
    rank = {"PASS": 0, "INCONCLUSIVE": 1, "FAIL": 2}
    policy = GatePolicy(confirm=False)
    before, after = (
        verdict_of([launch(value + extra) for value in logs], policy=policy).verdict for extra in (0.0, more)
    )
    assert rank[after] >= rank[before]


@given(changes)
def test_the_order_of_launches_does_not_matter(logs):
    launches = [launch(value) for value in logs]
    assert verdict_of(launches) == verdict_of(launches[::-1])


@given(st.dictionaries(st.text(), st.floats(0, 1), min_size=1))
def test_holm_lies_between_the_p_values_and_bonferroni_and_keeps_their_order(p_values):
    adjusted = holm(p_values)
    for name, p in p_values.items():
        assert p <= adjusted[name] <= min(1.0, len(p_values) * p)
    by_p = sorted(p_values, key=p_values.get)
    assert [adjusted[name] for name in by_p] == sorted(adjusted.values())


def test_holm_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})


# Several cases ----------------------------------------------------------------------------------------------------


def test_the_worst_case_decides_and_is_named():
    slow = case(around(0.08), around(0.08), name="batch 1")
    result = judge(evidence(cases=(case(around(0.0)), slow)), POLICY)
    assert result.verdict == "FAIL"
    assert result.change == pytest.approx(0.08)
    assert result.reasons == (f"batch 1: {result.cases[1].reason}",)
    assert [found.verdict for found in result.cases] == ["PASS", "FAIL"]


def test_one_case_that_cannot_tell_is_enough_not_to_pass():
    unsure = case(around(0.04, spread=0.2), name="batch 1")
    assert judge(evidence(cases=(case(around(0.0)), unsure)), POLICY).verdict == "INCONCLUSIVE"


def test_many_cases_share_the_error_of_failing():
    borderline = around(0.04, spread=0.02)
    policy = GatePolicy(confirm=False)
    assert verdict_of(borderline, policy=policy).verdict == "FAIL"
    many = [case(borderline, name="one"), *(case(around(0.0), name=f"batch {n}") for n in range(9))]
    assert judge_cases(many, policy)[0].verdict == "INCONCLUSIVE"


# Outputs, form, and what is missing -------------------------------------------------------------------------------


def test_wrong_outputs_fail_before_any_timing_counts():
    found = judge(evidence(outputs=outputs(relative_l2=1.0), cases=(case(around(0.0)),)), POLICY)
    assert (found.verdict, found.decided_by, found.change) == ("FAIL", "accuracy", None)
    assert "outputs differ by 1.00e+00 (relative L2), at most 1.00e-05 is allowed" in found.reasons[0]


def test_outputs_that_cannot_be_compared_fail():
    found = judge(evidence(outputs=outputs(relative_l2=None, refusal="NaN or infinity")), POLICY)
    assert found.reasons == ("the candidate's outputs cannot be compared: NaN or infinity",)


def test_an_allowed_drop_of_accuracy_replaces_the_tolerance():
    moved = outputs(relative_l2=0.3, baseline_accuracy=0.96, candidate_accuracy=0.95)
    assert outputs_problems(moved, GatePolicy(max_accuracy_drop=0.02)) == []
    told = outputs_problems(moved, GatePolicy(max_accuracy_drop=0.005))
    assert told == ["top-1 accuracy falls by 1.00%, at most 0.50% is allowed"]
    both = outputs_problems(moved, GatePolicy(max_accuracy_drop=0.02, tolerance=0.1))
    assert both[0].startswith("outputs differ by 3.00e-01")


def test_without_labels_agreement_counts():
    moved = outputs(relative_l2=0.3, top1_agreement=0.9)
    assert accuracy_drop(moved) == pytest.approx(0.1)
    told = outputs_problems(moved, GatePolicy(max_accuracy_drop=0.05))
    assert told == ["top-1 agreement with the reference falls by 10.00%, at most 5.00% is allowed"]


def test_outputs_may_have_changed_since_the_anchor_and_accuracy_may_not():
    moved = outputs(relative_l2=1.0, baseline_accuracy=0.9, candidate_accuracy=0.85)
    known = {"outputs": outputs(), "anchor_outputs": moved, "cases": (case(around(0.0)),)}
    assert judge(evidence(**known), POLICY).verdict == "PASS"
    found = judge(evidence(**known), GatePolicy(max_accuracy_drop=0.01))
    assert found.reasons == ("against the anchor, top-1 accuracy falls by 5.00%, at most 1.00% is allowed",)


def test_a_first_set_that_passes_when_judged_again_is_told_without_the_second():
    found = verdict_of(around(0.04, spread=0.001), around(0.2), GatePolicy(max_slowdown=0.1))
    assert (found.verdict, found.confirming_launches) == ("PASS", 0)
    assert found.change == pytest.approx(0.04)


def test_a_form_that_fell_behind_fails():
    form = {"quantum": 16, "baseline_precision": {"int8": 0.9, "fp32": 0.1}}
    kept = ParityEvidence(off_quantum=(), candidate_precision={"int8": 0.895, "fp32": 0.105}, **form)
    assert judge(evidence(parity=kept, cases=(case(around(0.0)),)), POLICY).verdict == "PASS"
    lost = ParityEvidence(off_quantum=("fc",), candidate_precision={"fp32": 1.0}, **form)
    found = judge(evidence(parity=lost), POLICY)
    assert (found.verdict, found.decided_by) == ("FAIL", "parity")
    assert found.reasons == (
        "the rank of 'fc' is no multiple of 16",
        "0.0% of the weights are in fewer than 32 bits, 90.0% in the baseline",
    )


def test_no_baseline_is_no_verdict():
    found = judge(evidence(baseline=None), POLICY)
    assert (found.verdict, found.decided_by) == ("INCONCLUSIVE", "baseline")


def test_nothing_timed_is_inconclusive():
    assert judge(evidence(), POLICY).reasons == ("nothing was timed",)


def test_a_stored_result_can_be_judged_again_by_another_policy():
    result = judge(evidence(cases=(case(around(0.02), around(0.02)),)), POLICY)
    assert result.verdict == "PASS"
    stored = GateResult.model_validate_json(result.to_json())
    assert stored == result
    assert judge(stored.evidence, GatePolicy(max_slowdown=0.02)).verdict == "FAIL"


def test_a_policy_that_gives_up_before_it_looks_is_refused():
    with pytest.raises(ValueError, match="most_launches, 4, is below launches, 6"):
        GatePolicy(most_launches=4)


@pytest.mark.parametrize("slowdown", [0.0, 0.05])
def test_simulated_launches_of_a_calm_machine_are_judged_right(slowdown):
    first, second = (simulated(6, slowdown=slowdown, seed=seed) for seed in (1, 2))
    assert verdict_of(first, second).verdict == ("FAIL" if slowdown else "PASS")
