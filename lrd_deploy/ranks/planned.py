"""From choices to a plan: what every policy writes down in the same way."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel

from lrd_deploy.models.layer import Layer
from lrd_deploy.ranks.cost import macs, parameters
from lrd_deploy.records import Environment, KeepDense, PlannedLayer, RankPlan


def rank_plan(planned: Sequence[PlannedLayer], policy: BaseModel, measured_on: Environment | None = None) -> RankPlan:
    """Returns the plan that these choices make, with its totals."""
    counted = [layer for layer in planned if layer.signature]
    return RankPlan(
        policy=policy.model_dump(mode="json"),
        layers=tuple(planned),
        dense_macs=sum(layer.calls * macs(layer.signature, KeepDense()) for layer in counted),
        lowrank_macs=sum(layer.calls * macs(layer.signature, layer.choice) for layer in counted),
        dense_parameters=sum(parameters(layer.signature, KeepDense()) for layer in counted),
        lowrank_parameters=sum(parameters(layer.signature, layer.choice) for layer in counted),
        measured_on=measured_on,
    )


def kept_dense(layer: Layer, reason: str, latency_ms: float | None = None) -> PlannedLayer:
    """Returns the decision to leave a layer as it is, and why."""
    return PlannedLayer(
        name=layer.name,
        signature=layer.signature,
        choice=KeepDense(),
        reason=reason,
        calls=layer.calls,
        dense_latency_ms=latency_ms,
        predicted_latency_ms=latency_ms,
    )
