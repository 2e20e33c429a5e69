"""How far the launches of a case lie apart, in milliseconds."""

from __future__ import annotations

from typing import NamedTuple

from lrd_deploy.records import CaseVerdict, GateResult


class Spread(NamedTuple):
    """The fastest and the slowest launch of one arm: extremes, not an interval with a confidence."""

    low_ms: float
    high_ms: float


def candidate_spread(result: GateResult, case: CaseVerdict) -> Spread | None:
    """Returns the spread of the candidate's launches, of those that the verdict rests on; None without evidence."""
    for evidence in result.evidence.cases:
        if evidence.name == case.name:
            launches = (*evidence.launches, *(evidence.confirming if result.policy.confirm else ()))
            times = [launch.candidate_ms for launch in launches]
            return Spread(min(times), max(times)) if times else None
    return None
