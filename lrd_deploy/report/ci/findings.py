"""A gate's result as a list of findings: one for each thing that was checked, ready for any format."""

from __future__ import annotations

from typing import NamedTuple

from lrd_deploy.gate.judge import accuracy_drop, anchor_problems, outputs_problems, parity_problems
from lrd_deploy.records import CaseVerdict, GateResult, OutputEvidence, ParityEvidence, Verdict
from lrd_deploy.records.gate import DecidedBy
from lrd_deploy.report.ci.legible import distinct, legible

_MOST_PROBLEMS = 20
_LONGEST_REASON = 500


class Finding(NamedTuple):
    """One thing that was checked.

    Attributes:
        name: legible, and different from that of every other finding.
        checks: what kind of thing it is.
        verdict: what was found.
        reason: in one legible line.
        numbers: what was measured, by name; units are suffixes, a change is a share. None of them is missing or NaN.
        case: the timed case, for latency.
    """

    name: str
    checks: DecidedBy
    verdict: Verdict
    reason: str
    numbers: dict[str, float | int | str]
    case: CaseVerdict | None = None


def findings(result: GateResult) -> tuple[Finding, ...]:
    """Returns what was found, in the order in which a gate looks: outputs, the model's form, every timed case.

    Where nothing was timed, although nothing had failed before, the last finding says why.
    """
    found = [*_of_outputs(result), *_of_parity(result), *map(_of_case, result.cases)]
    if result.decided_by == "baseline" or (result.decided_by == "latency" and not result.cases):
        found.append(Finding(result.decided_by, result.decided_by, result.verdict, _line(result.reasons), {}))
    names = distinct(finding.name for finding in found)
    return tuple(finding._replace(name=name) for finding, name in zip(found, names, strict=True))


def headline(result: GateResult) -> str:
    """Returns the reason of the verdict in one legible line."""
    if result.verdict == "PASS":
        count = f"{len(result.cases)} of {len(result.cases)} cases"
        excluded = f"a slowdown of {result.policy.max_slowdown:.1%} is excluded in {count}"
        return excluded if result.change is None else f"{excluded}; largest change {change(result)}"
    others = len(result.reasons) - 1
    return _line(result.reasons[:1]) + (f" (and {others} more)" if others > 0 else "")


def change(timed: CaseVerdict | GateResult) -> str:
    """Returns "+1.2% [-0.3%, +2.6%]", or a dash."""
    if timed.change is None:
        return "–"
    bounds = "" if timed.low is None or timed.high is None else f" [{timed.low:+.1%}, {timed.high:+.1%}]"
    return f"{timed.change:+.1%}{bounds}"


def number(value: float | int | str) -> str:
    """Returns six significant digits, or a text as it is."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _of_case(case: CaseVerdict) -> Finding:
    reason = legible(case.reason, _LONGEST_REASON)
    return Finding(legible(case.name), "latency", case.verdict, reason, _case_numbers(case), case)


def _case_numbers(case: CaseVerdict) -> dict[str, float | int | str]:
    numbers = case.model_dump(exclude={"name", "verdict", "reason", "control"}, exclude_none=True)
    if case.control is not None:
        readings = case.control.model_dump(exclude={"trusted"})
        numbers |= {f"control_{name}": value for name, value in readings.items()}
        numbers["control_trusted"] = "yes" if case.control.trusted else "no"
    return numbers


def _of_outputs(result: GateResult) -> list[Finding]:
    found = []
    for name, outputs, problems_of in (
        ("outputs", result.evidence.outputs, outputs_problems),
        ("outputs against the anchor", result.evidence.anchor_outputs, anchor_problems),
    ):
        if outputs is not None:
            problems = problems_of(outputs, result.policy)
            numbers = outputs.model_dump(exclude={"refusal"}, exclude_none=True)
            found.append(_checked(name, "accuracy", problems, _of_agreement(outputs), numbers))
    return found


def _of_agreement(outputs: OutputEvidence) -> str:
    parts = [f"{outputs.samples} samples"]
    if outputs.baseline_accuracy is not None and outputs.candidate_accuracy is not None:
        fall = accuracy_drop(outputs)
        parts.append(f"accuracy {outputs.baseline_accuracy:.2%} → {outputs.candidate_accuracy:.2%} ({-fall:+.2%})")
    if outputs.top1_agreement is not None:
        parts.append(f"top-1 agreement {outputs.top1_agreement:.2%}")
    if outputs.relative_l2 is not None:
        parts.append(f"relative L2 difference {outputs.relative_l2:.2e}")
    return ", ".join(parts)


def _of_parity(result: GateResult) -> list[Finding]:
    parity = result.evidence.parity
    # A gate that failed on its outputs has not looked at the form.
    if parity is None or result.decided_by == "accuracy":
        return []
    numbers: dict[str, float | int | str] = {"off_quantum": len(parity.off_quantum)}
    for arm, precision in (("baseline", parity.baseline_precision), ("candidate", parity.candidate_precision)):
        numbers |= {f"{arm}_{legible(name, 40)}": share for name, share in sorted(precision.items())}
    return [_checked("form", "parity", parity_problems(parity), _of_form(parity), numbers)]


def _of_form(parity: ParityEvidence) -> str:
    before, after = (
        " and ".join(f"{share:.1%} {name}" for name, share in sorted(precision.items())) or "no weights"
        for precision in (parity.baseline_precision, parity.candidate_precision)
    )
    ranks = "" if parity.quantum is None else f"every rank is a multiple of {parity.quantum}; "
    return f"{ranks}weights {before} → {after}"


def _checked(name: str, checks: DecidedBy, problems: list[str], passed: str, numbers: dict) -> Finding:
    return Finding(name, checks, "FAIL" if problems else "PASS", _line(problems or [passed]), numbers)


def _line(reasons: list[str] | tuple[str, ...]) -> str:
    more = len(reasons) - _MOST_PROBLEMS
    shown = [legible(reason, _LONGEST_REASON) for reason in reasons[:_MOST_PROBLEMS]]
    return "; ".join(shown) + (f"; and {more} more" if more > 0 else "")
