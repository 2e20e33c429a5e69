"""OpenMetrics text for GitLab's metrics report; anything that reads Prometheus' format reads it too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lrd_deploy.records import CaseVerdict, GateResult
from lrd_deploy.report.ci.findings import findings, number
from lrd_deploy.report.ci.legible import distinct

Sample = tuple[dict[str, str], float | int]

_EXIT_CODES = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3}


def open_metrics(result: GateResult) -> str:
    """Returns the result as gauges: ratios to the baseline, latencies in ms, launches, accuracies, the verdict."""
    lines = []
    for family, meaning, samples in _families(result):
        if samples:
            lines += [f"# HELP {family} {meaning}", f"# TYPE {family} gauge"]
            lines += [f"{family}{_labels(labels)} {number(value)}" for labels, value in samples]
    return "\n".join((*lines, "# EOF")) + "\n"


def _families(result: GateResult) -> Iterator[tuple[str, str, list[Sample]]]:
    cases = [finding.case for finding in findings(result) if finding.case]
    names = distinct(_quotable(finding.name) for finding in findings(result) if finding.case)
    named = list(zip(names, cases, strict=True))
    yield (
        "lrd_gate_verdict",
        "The verdict: 0 pass, 1 fail, 3 inconclusive or no baseline.",
        [({}, _EXIT_CODES[result.verdict])],
    )
    for family, meaning, field in (
        ("lrd_gate_ratio", "Candidate latency over baseline latency; above 1 is slower.", "change"),
        ("lrd_gate_ratio_low", "One-sided lower bound of the ratio.", "low"),
        ("lrd_gate_ratio_high", "One-sided upper bound of the ratio.", "high"),
    ):
        yield family, meaning, _samples(named, lambda case, field=field: _ratio(getattr(case, field)))
    yield (
        "lrd_gate_control_ratio",
        "The baseline's copy over it; 1 on a calm machine.",
        _samples(named, _control),
    )
    for arm, field in (("baseline", "base_ms"), ("candidate", "candidate_ms")):
        meaning = f"Median latency of the {arm} in milliseconds."
        yield f"lrd_gate_{arm}_ms", meaning, _samples(named, lambda case, field=field: getattr(case, field))
    yield "lrd_gate_launches", "Fresh processes that were measured.", _samples(named, _launches)
    yield "lrd_gate_accuracy", "Top-1 accuracy, a share.", _accuracies(result)


def _samples(named: list[tuple[str, CaseVerdict]], value_of: Callable[[CaseVerdict], Any]) -> list[Sample]:
    values = [({"case": name}, value_of(case)) for name, case in named]
    return [(labels, value) for labels, value in values if value is not None]


def _ratio(share: float | None) -> float | None:
    return None if share is None else 1.0 + share


def _control(case: CaseVerdict) -> float | None:
    return None if case.control is None else 1.0 + case.control.change


def _launches(case: CaseVerdict) -> int:
    return case.all_launches


def _accuracies(result: GateResult) -> list[Sample]:
    outputs = result.evidence.outputs
    shares = (outputs.baseline_accuracy, outputs.candidate_accuracy) if outputs else (None, None)
    arms = zip(("baseline", "candidate"), shares, strict=True)
    return [({"arm": arm}, share) for arm, share in arms if share is not None]


def _quotable(name: str) -> str:
    """GitLab takes a number sign for a comment even within quotes, and then refuses the file for an open quote."""
    return name.replace("#", "＃")


def _labels(labels: dict[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_in_quotes(value)}"' for name, value in labels.items()) + "}"


def _in_quotes(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"")
