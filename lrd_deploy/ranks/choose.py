"""From layers and a policy to a rank plan."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lrd_deploy.errors import InputError, UsageError
from lrd_deploy.models.layer import Layer
from lrd_deploy.ranks.by_latency import LatencyPlanner
from lrd_deploy.ranks.by_paper import planned_by_paper
from lrd_deploy.ranks.by_weight import planned_by_weight
from lrd_deploy.ranks.evidence import Evidence
from lrd_deploy.ranks.planned import rank_plan
from lrd_deploy.ranks.source import LatencySource
from lrd_deploy.recipe.policies import LatencyRank, PaperRank, Policy
from lrd_deploy.records import RankPlan


def plan_ranks(
    layers: Sequence[Layer],
    policy: Policy,
    latency: LatencySource | None = None,
    evidence: Evidence | None = None,
) -> RankPlan:
    """Returns one choice for every layer, and why.

    Args:
        layers: in any order; refused layers stay dense for their own reason.
        policy: how to choose. `LatencyRank` and `PaperRank` need `latency`.
        latency: times layers on the deployment backend.
        evidence: what calibration data says; without it all inputs and all layers weigh the same.

    Raises:
        InputError: a weight is not finite.
        UsageError: the policy's target cannot be met.
    """
    check_finite(layers)
    evidence = evidence or Evidence()
    if not isinstance(policy, LatencyRank | PaperRank):
        return rank_plan([planned_by_weight(layer, policy, evidence) for layer in layers], policy)
    if latency is None:
        raise UsageError(
            "choosing ranks by latency",
            found="no source of latencies",
            accepted="something with latencies_ms(), such as MeasuredLatency",
            remedy="pass it as plan_ranks(layers, policy, latency)",
        )
    if isinstance(policy, PaperRank):
        return rank_plan(planned_by_paper(layers, policy, latency, evidence), policy, latency.environment)
    return LatencyPlanner(layers, policy, latency, evidence).plan()


def check_finite(layers: Sequence[Layer]) -> None:
    """Refuses layers whose weights are NaN or infinite.

    Raises:
        InputError: the first such layer.
    """
    for layer in layers:
        bad = int((~np.isfinite(layer.weight())).sum())
        if bad:
            raise InputError(
                f"choosing ranks for the layer '{layer.name}'",
                found=f"{bad} weights that are NaN or infinite",
                accepted="finite weights",
                remedy="repair or retrain the model",
            )
