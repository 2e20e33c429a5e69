"""A gate's result in words, the same in the terminal and on the page."""

from __future__ import annotations

from typing import NamedTuple

from lrd_deploy.records import CaseVerdict, GatePolicy, GateResult, OutputEvidence, ParityEvidence, Verdict
from lrd_deploy.report.wording import aligned_milliseconds

CASE_COLUMNS = (
    "case",
    "verdict",
    "baseline ms",
    "candidate ms",
    "change",
    "at least",
    "at most",
    "finds",
    "launches",
    "control",
)


class CaseRow(NamedTuple):
    """One case in words, in the order of `CASE_COLUMNS`."""

    name: str
    verdict: Verdict
    base_ms: str
    candidate_ms: str
    change: str
    low: str
    high: str
    min_detectable: str
    launches: str
    control: str


def change(share: float | None) -> str:
    """Returns "+6.2%", or a dash."""
    return "–" if share is None else f"{share:+.1%}"


def headline(result: GateResult) -> str:
    """Returns the verdict in one sentence, without its numbers' small print."""
    if result.verdict == "PASS":
        return (
            f"A slowdown of {result.policy.max_slowdown:.1%} is excluded; the largest change is {change(result.change)}"
        )
    if result.verdict == "FAIL":
        return {
            "latency": f"The candidate is slower by {change(_largest_failing(result))}",
            "accuracy": "The candidate's outputs are not the baseline's",
            "parity": "The candidate's form fell behind the baseline's",
        }[result.decided_by]
    if result.evidence.baseline is None:
        return "The candidate has no baseline yet"
    return f"Whether there is a slowdown of {result.policy.max_slowdown:.1%} cannot be told"


def _largest_failing(result: GateResult) -> float | None:
    failing = [case.change for case in result.cases if case.verdict == "FAIL" and case.change is not None]
    return max(failing, default=None)


def case_rows(result: GateResult) -> list[CaseRow]:
    """Returns a row per case."""
    base = aligned_milliseconds([case.base_ms for case in result.cases])
    candidate = aligned_milliseconds([case.candidate_ms for case in result.cases])
    return [_case_row(*row) for row in zip(result.cases, base, candidate, strict=True)]


def bounds_sentence(policy: GatePolicy) -> str:
    """Returns how sure the bounds of the cases are."""
    return (
        f"change: of the candidate's latency against the baseline's; at least with {policy.fail_confidence:.0%} "
        f"confidence, at most with {policy.pass_confidence:.0%}; finds: the smallest slowdown that this many launches "
        "are sure to find; control: the baseline against its own copy"
    )


def output_rows(outputs: OutputEvidence, policy: GatePolicy) -> list[tuple[str, str]]:
    """Returns (quantity, value) of the output comparison, with what was allowed."""
    if outputs.refusal is not None:
        return [("samples", str(outputs.samples)), ("cannot be compared", outputs.refusal)]
    allowed = policy.tolerance
    if allowed is None and policy.max_accuracy_drop is None:
        allowed = outputs.rounding_tolerance
    limit = "any is allowed" if allowed is None else f"at most {allowed:.2e} is allowed"
    rows = [("samples", f"{outputs.samples:,}"), ("relative L2 difference", f"{outputs.relative_l2:.2e}, {limit}")]
    if outputs.top1_agreement is not None:
        rows.append(("top-1 agreement", f"{outputs.top1_agreement:.2%}"))
    if outputs.baseline_accuracy is not None:
        rows.append(
            ("top-1 accuracy", f"baseline {outputs.baseline_accuracy:.2%}, candidate {outputs.candidate_accuracy:.2%}")
        )
    if policy.max_accuracy_drop is not None:
        rows.append(("accuracy may fall by", f"at most {policy.max_accuracy_drop:.2%}"))
    return rows


def parity_rows(parity: ParityEvidence) -> list[tuple[str, str]]:
    """Returns (quantity, value) of the candidate's form."""
    quantum = "not checked" if parity.quantum is None else str(parity.quantum)
    rows = [("quantum of the ranks", quantum), ("ranks off the quantum", "; ".join(parity.off_quantum) or "none")]
    for name, shares in (("baseline", parity.baseline_precision), ("candidate", parity.candidate_precision)):
        listed = ", ".join(f"{precision} {share:.1%}" for precision, share in shares.items())
        rows.append((f"precision of the weights, {name}", listed or "no weights"))
    return rows


def policy_rows(policy: GatePolicy) -> list[tuple[str, str]]:
    """Returns (setting, value) of the policy that judged."""
    return [
        ("largest slowdown", f"{policy.max_slowdown:.1%}"),
        ("threshold of an estimate", f"{policy.threshold:.1%}"),
        ("confidence to fail, to pass", f"{policy.fail_confidence:.1%}, {policy.pass_confidence:.1%}"),
        ("launches", f"{policy.launches} to {policy.most_launches}"),
        ("a failure is confirmed by a second set", "yes" if policy.confirm else "no"),
    ]


def _case_row(case: CaseVerdict, base_ms: str, candidate_ms: str) -> CaseRow:
    control = "–"
    if case.control is not None:
        control = change(case.control.change) + ("" if case.control.trusted else ", not trusted")
    return CaseRow(
        name=case.name,
        verdict=case.verdict,
        base_ms=base_ms,
        candidate_ms=candidate_ms,
        change=change(case.change),
        low=change(case.low),
        high=change(case.high),
        min_detectable="–" if case.min_detectable is None else f"{case.min_detectable:.1%}",
        launches=f"{case.launches} + {case.confirming_launches}" if case.confirming_launches else str(case.launches),
        control=control,
    )
