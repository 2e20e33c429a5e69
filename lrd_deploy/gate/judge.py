"""The verdict: evidence and a policy in, PASS, FAIL or INCONCLUSIVE out. Pure; nothing is measured here.

FAIL          slower with confidence, and by more than the threshold; twice, in two independent sets of launches
PASS          a slowdown of `max_slowdown` is excluded with confidence
INCONCLUSIVE  neither; or the machine was too busy, the baseline beside its own copy coming out different, and the
              candidate is not slower by more than that
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import expm1, log1p
from typing import NamedTuple

from lrd_deploy.bench.statistics import median, trimmed_mean
from lrd_deploy.records import (
    CaseEvidence,
    CaseVerdict,
    ControlReading,
    GateEvidence,
    GatePolicy,
    GateResult,
    LaunchRatio,
    OutputEvidence,
    ParityEvidence,
    Verdict,
)
from lrd_deploy.version import __version__

_PRECISION_SLACK = 0.01  # of the weights; factors are fewer and smaller than what they replace
_REDUCED = frozenset({"fp16", "bf16", "int8"})
_LARGEST_LOG = 50.0


def judge(evidence: GateEvidence, policy: GatePolicy) -> GateResult:
    """Returns the verdict: outputs first, then the model's form, then latency."""
    for decided_by, problems in (
        ("accuracy", outputs_problems(evidence.outputs, policy) + anchor_problems(evidence.anchor_outputs, policy)),
        ("parity", parity_problems(evidence.parity)),
    ):
        if problems:
            return _result(evidence, policy, "FAIL", decided_by, problems, ())
    if evidence.baseline is None:
        return _result(evidence, policy, "INCONCLUSIVE", "baseline", ["there is no baseline to compare with"], ())
    cases = judge_cases(evidence.cases, policy)
    verdicts = {case.verdict for case in cases}
    verdict = next((name for name in ("FAIL", "INCONCLUSIVE") if name in verdicts), "PASS" if cases else "INCONCLUSIVE")
    reasons = [f"{case.name}: {case.reason}" for case in cases if case.verdict == verdict]
    return _result(evidence, policy, verdict, "latency", reasons or ["nothing was timed"], cases)


def _result(
    evidence: GateEvidence,
    policy: GatePolicy,
    verdict: Verdict,
    decided_by: str,
    reasons: Sequence[str],
    cases: Sequence[CaseVerdict],
) -> GateResult:
    timed = [case for case in cases if case.change is not None]
    worst = max(timed, key=lambda case: case.change, default=None)
    return GateResult(
        version=__version__,
        verdict=verdict,
        decided_by=decided_by,
        reasons=tuple(reasons),
        change=worst and worst.change,
        low=worst and worst.low,
        high=worst and worst.high,
        min_detectable=max((case.min_detectable for case in timed), default=None),
        cases=tuple(cases),
        policy=policy,
        evidence=evidence,
    )


def outputs_problems(outputs: OutputEvidence | None, policy: GatePolicy) -> list[str]:
    """Returns what is wrong with the candidate's outputs under a policy."""
    if outputs is None:
        return []
    if outputs.refusal is not None:
        return [f"the candidate's outputs cannot be compared: {outputs.refusal}"]
    problems = []
    tolerance = policy.tolerance
    if tolerance is None and policy.max_accuracy_drop is None:
        tolerance = outputs.rounding_tolerance
    if tolerance is not None and outputs.relative_l2 > tolerance:
        meant = "" if policy.tolerance is not None else "; --tolerance or --max-accuracy-drop allow what is meant"
        problems.append(
            f"outputs differ by {outputs.relative_l2:.2e} (relative L2), at most {tolerance:.2e} is allowed{meant}"
        )
    drop = accuracy_drop(outputs)
    if policy.max_accuracy_drop is not None and drop > policy.max_accuracy_drop:
        measure = "agreement with the reference" if outputs.baseline_accuracy is None else "accuracy"
        problems.append(f"top-1 {measure} falls by {drop:.2%}, at most {policy.max_accuracy_drop:.2%} is allowed")
    return problems


def anchor_problems(outputs: OutputEvidence | None, policy: GatePolicy) -> list[str]:
    """Returns what is wrong with the outputs beside the anchor's: a drop of accuracy. They may have changed since."""
    if outputs is None or policy.max_accuracy_drop is None:
        return []
    problems = outputs_problems(outputs, policy.model_copy(update={"tolerance": None}))
    return [f"against the anchor, {problem}" for problem in problems]


def accuracy_drop(outputs: OutputEvidence) -> float:
    """Returns the loss of top-1 accuracy; without labels, the share of samples whose top-1 is another."""
    if outputs.baseline_accuracy is not None:
        return outputs.baseline_accuracy - outputs.candidate_accuracy
    return 1.0 - outputs.top1_agreement


def parity_problems(parity: ParityEvidence | None) -> list[str]:
    """Returns where the candidate's form fell behind: ranks off the quantum, weights no longer in few bits."""
    if parity is None:
        return []
    problems = [f"the rank of '{chain}' is no multiple of {parity.quantum}" for chain in parity.off_quantum]
    before, after = (
        sum(share for name, share in precision.items() if name in _REDUCED)
        for precision in (parity.baseline_precision, parity.candidate_precision)
    )
    if after < before - _PRECISION_SLACK:
        problems.append(f"{after:.1%} of the weights are in fewer than 32 bits, {before:.1%} in the baseline")
    return problems


def judge_cases(cases: Sequence[CaseEvidence], policy: GatePolicy) -> tuple[CaseVerdict, ...]:
    """Returns a verdict per case: that of its first set of launches, where a FAIL must be confirmed by the second."""
    first = set_verdicts({case.name: case.launches for case in cases}, policy)
    failing = {case.name: case.confirming for case in cases if first[case.name] == "FAIL"}
    second = set_verdicts(failing, policy) if policy.confirm else dict.fromkeys(failing, "FAIL")
    return tuple(_case_verdict(case, first[case.name], second.get(case.name), policy) for case in cases)


def set_verdicts(sets: Mapping[str, Sequence[LaunchRatio]], policy: GatePolicy) -> dict[str, Verdict]:
    """Returns what one set of launches says of every case; Holm's rule shares the error of failing among them.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979), 65.
    """
    readings = {name: _Reading.of(launches, policy) for name, launches in sets.items()}
    adjusted = holm({name: reading.p_slower if reading else 1.0 for name, reading in readings.items()})
    return {name: _set_verdict(reading, adjusted[name], policy) for name, reading in readings.items()}


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Returns Holm's adjusted p-values."""
    adjusted, largest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return adjusted


class _Reading(NamedTuple):
    """A set of launches, on the scale of log ratios."""

    mean: float
    low: float
    high: float
    p_slower: float
    min_detectable: float
    control: ControlReading
    untrusted: float  # what a control that is off takes from every claim of a slowdown

    @classmethod
    def of(cls, launches: Sequence[LaunchRatio], policy: GatePolicy) -> _Reading | None:
        """Reads a set; None before there are launches enough for a first look."""
        if len(launches) < policy.launches:
            return None
        control = read_control(launches, policy)
        untrusted = 0.0 if control.trusted else abs(log1p(control.change))
        mean, error, degrees = trimmed_mean([launch.candidate for launch in launches])
        to_fail, to_pass = (_t(confidence, degrees) * error for confidence in _confidences(policy))
        return cls(
            mean=mean,
            low=mean - to_fail,
            high=mean + to_pass,
            p_slower=_p_above(mean - untrusted, error, degrees),
            min_detectable=max(policy.log_threshold, to_fail) + to_fail,
            control=control,
            untrusted=untrusted,
        )


def read_control(launches: Sequence[LaunchRatio], policy: GatePolicy) -> ControlReading:
    """Returns the A/A control: off by more than the threshold, or by half of it with near certainty, is not trusted."""
    mean, error, degrees = trimmed_mean([launch.control for launch in launches])
    two_sided = 0.5 + policy.control_confidence / 2
    half = _t(two_sided, degrees) * error
    off = abs(mean) > policy.log_threshold
    surely_off = abs(mean) > policy.log_threshold / 2 and abs(mean) > half
    return ControlReading(
        change=_share(mean), low=_share(mean - half), high=_share(mean + half), trusted=not off and not surely_off
    )


def _set_verdict(reading: _Reading | None, adjusted_p: float, policy: GatePolicy) -> Verdict:
    """The rule, in three lines."""
    if reading is None:
        return "INCONCLUSIVE"
    if adjusted_p < 1 - policy.fail_confidence and reading.mean > policy.log_threshold + reading.untrusted:
        return "FAIL"
    return "PASS" if reading.high < log1p(policy.max_slowdown) and reading.control.trusted else "INCONCLUSIVE"


def _case_verdict(case: CaseEvidence, first: Verdict, second: Verdict | None, policy: GatePolicy) -> CaseVerdict:
    confirming = case.confirming if policy.confirm and first == "FAIL" else ()
    launches = (*case.launches, *confirming)
    reading = _Reading.of(launches, policy)
    verdict = first
    if first == "FAIL" and second != "FAIL":
        # Both sets together are the best estimate there is; they may acquit, never convict.
        together = set_verdicts({case.name: launches}, policy)[case.name]
        verdict = "PASS" if together == "PASS" and second != "INCONCLUSIVE" else "INCONCLUSIVE"
    sizes = {"launches": len(case.launches), "confirming_launches": len(confirming)}
    if reading is None:
        some = f"unfinished: {len(case.launches)} of at least {policy.launches} launches"
        reason = some if case.launches else "nothing was timed: run the gate again"
        return CaseVerdict(name=case.name, verdict="INCONCLUSIVE", reason=reason, **sizes)
    return CaseVerdict(
        name=case.name,
        verdict=verdict,
        reason=_reason(reading, verdict, first, second if confirming else None, policy),
        change=_share(reading.mean),
        low=_share(reading.low),
        high=_share(reading.high),
        p_value=reading.p_slower,
        min_detectable=_share(reading.min_detectable),
        base_ms=median([launch.base_ms for launch in launches]),
        candidate_ms=median([launch.candidate_ms for launch in launches]),
        control=reading.control,
        **sizes,
    )


def _reason(reading: _Reading, verdict: Verdict, first: Verdict, second: Verdict | None, policy: GatePolicy) -> str:
    change, largest = f"{_share(reading.mean):+.1%}", f"{policy.max_slowdown:.1%}"
    if verdict == "FAIL":
        again = ", and again in a second set of launches" if policy.confirm else ""
        return f"slower by {change}, more than {policy.threshold:.1%} ({policy.threshold_share:g} of {largest}){again}"
    if verdict == "PASS":
        return f"{change}; a slowdown of {largest} is excluded (at most {_share(reading.high):+.1%})"
    if not reading.control.trusted:
        off = f"{reading.control.change:+.1%}"
        return f"the machine was too busy: the baseline beside its own copy came out at {off}, the candidate {change}"
    if first == "FAIL":
        did = "did not fail" if second == "PASS" else "could not tell" if second else "is missing"
        return f"slower by {change} at first, but the second set of launches {did}"
    return (
        f"{change}, at most {_share(reading.high):+.1%}: a slowdown of {largest} is neither found nor excluded; "
        f"this many launches are sure to find {_share(reading.min_detectable):.1%}"
    )


def _confidences(policy: GatePolicy) -> tuple[float, float]:
    return policy.fail_confidence, policy.pass_confidence


def _t(confidence: float, degrees: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees, confidence))


def _p_above(mean: float, error: float, degrees: int) -> float:
    """One-sided p-value of a mean above 0."""
    from scipy.special import stdtr

    if error == 0.0:
        return 0.0 if mean > 0 else 1.0
    return float(stdtr(degrees, -mean / error))


def _share(log_ratio: float) -> float:
    return expm1(max(min(log_ratio, _LARGEST_LOG), -_LARGEST_LOG))
