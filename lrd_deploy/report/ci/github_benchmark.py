"""`customSmallerIsBetter` JSON for github-action-benchmark.

For its charts. The verdict came from a baseline measured beside the candidate; an alert on stored milliseconds would
compare machines.
"""

from __future__ import annotations

import json
from typing import Any

from lrd_deploy.records import GateResult
from lrd_deploy.report.ci.findings import Finding, findings
from lrd_deploy.report.ci.launch_spread import candidate_spread


def benchmark_json(result: GateResult) -> str:
    """Returns two entries for every timed case: the ratio to the baseline, and milliseconds; `[]` without any."""
    entries = [entry for finding in findings(result) if finding.case for entry in _entries(result, finding)]
    return json.dumps(entries, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _entries(result: GateResult, finding: Finding) -> list[dict[str, Any]]:
    case, entries = finding.case, []
    extra = f"{finding.verdict}: {finding.reason}\n{case.all_launches} launches"
    if case.change is not None:
        entry = {"name": f"{finding.name}: candidate / baseline", "unit": "x", "value": _rounded(1.0 + case.change)}
        if case.low is not None and case.high is not None:
            entry["range"] = f"{1.0 + case.low:.4f} to {1.0 + case.high:.4f}"
        entries.append(entry | {"extra": extra})
    if case.candidate_ms is not None:
        entry = {"name": f"{finding.name}: candidate", "unit": "ms", "value": _rounded(case.candidate_ms)}
        spread = candidate_spread(result, case)
        if spread:
            entry["range"] = f"{spread.low_ms:.4g} to {spread.high_ms:.4g} over launches"
        baseline = "" if case.base_ms is None else f"\nbaseline {case.base_ms:.4g} ms"
        here = result.evidence.environment
        entries.append(entry | {"extra": f"{extra}{baseline}\nmachine {here.fingerprint}"})
    return entries


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
