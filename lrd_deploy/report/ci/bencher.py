"""Bencher Metric Format: `bencher run --adapter json --file FILE`."""

from __future__ import annotations

import json

from lrd_deploy.records import CaseVerdict, GateResult
from lrd_deploy.report.ci.findings import findings
from lrd_deploy.report.ci.launch_spread import candidate_spread

_NS_PER_MS = 1e6

Metric = dict[str, float]


def bencher_json(result: GateResult) -> str:
    """Returns every timed case with its measures; `{}` without any.

    `latency` is the candidate's median in nanoseconds, between its fastest and its slowest launch. `latency-ratio` is
    candidate over baseline with the gate's one-sided bounds: set thresholds on this one, it does not know the machine.
    """
    measures = {finding.name: _measures(result, finding.case) for finding in findings(result) if finding.case}
    kept = {name: measured for name, measured in measures.items() if measured}
    return json.dumps(kept, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _measures(result: GateResult, case: CaseVerdict) -> dict[str, Metric]:
    measures = {}
    if case.candidate_ms is not None:
        spread = candidate_spread(result, case)
        measures["latency"] = _metric(case.candidate_ms, *(spread or (None, None)), scale=_NS_PER_MS)
    if case.change is not None:
        bounds = (None if bound is None else 1.0 + bound for bound in (case.low, case.high))
        measures["latency-ratio"] = _metric(1.0 + case.change, *bounds)
    return measures


def _metric(value: float, low: float | None, high: float | None, *, scale: float = 1.0) -> Metric:
    named = {"value": value, "lower_value": low, "upper_value": high}
    return {name: float(f"{part * scale:.6g}") for name, part in named.items() if part is not None}
