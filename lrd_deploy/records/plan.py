"""What rank choice decides, and why."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from lrd_deploy.records.environment import Environment
from lrd_deploy.records.layers import Choice, KeepDense, LayerSignature
from lrd_deploy.records.record import Record


class PlannedLayer(Record):
    """What a plan decides for one layer, and why. Latencies are of all its `calls` in one forward pass."""

    name: str
    signature: LayerSignature | None
    choice: Choice
    reason: str
    calls: int = Field(default=1, ge=1)
    predicted_error: float = Field(default=0.0, ge=0.0)
    dense_latency_ms: float | None = None
    predicted_latency_ms: float | None = None


class RankPlan(Record):
    """One choice for every layer of a model. `macs` and `parameters` count the planned layers, per sample."""

    policy: dict[str, Any]
    layers: tuple[PlannedLayer, ...]
    dense_macs: int
    lowrank_macs: int
    dense_parameters: int
    lowrank_parameters: int
    predicted_speedup: float | None = None
    measured_on: Environment | None = None

    @property
    def factorised(self) -> tuple[PlannedLayer, ...]:
        """The layers that do not stay dense."""
        return tuple(layer for layer in self.layers if not isinstance(layer.choice, KeepDense))
