"""What rank choice decides, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

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
    """One choice for every layer of a model. `macs` and `parameters` count the planned layers, per sample.

    `predicted_speedup` adds up layers, and what the dense model is measured to take besides them; `measured_speedup` is
    of the whole model in the planned form. Both are of a quick look with one process, and `bench` has the last word.
    `predicted_error` is the relative error of the model's outputs on the calibration data, before fine-tuning.
    """

    policy: dict[str, Any]
    layers: tuple[PlannedLayer, ...]
    dense_macs: int
    lowrank_macs: int
    dense_parameters: int
    lowrank_parameters: int
    predicted_speedup: float | None = None
    measured_speedup: float | None = None
    predicted_error: float | None = None
    quantum: int | None = None
    measured_on: Environment | None = None
    notes: tuple[str, ...] = ()

    @property
    def factorised(self) -> tuple[PlannedLayer, ...]:
        """The layers that do not stay dense."""
        return tuple(layer for layer in self.layers if not isinstance(layer.choice, KeepDense))


class RankPoint(Record):
    """One choice for one layer: what it costs, what it loses, and whether it was timed or predicted."""

    choice: Choice
    latency_ms: float
    relative_error: float
    timed: bool


class LayerStudy(Record):
    """What was considered for one layer; `dense_latency_ms` and the points are of all its calls."""

    name: str
    signature: LayerSignature
    dense_latency_ms: float
    chosen: Choice
    points: tuple[RankPoint, ...]


class FrontPoint(Record):
    """One plan for the whole model: its summed latency against dense, and its predicted error."""

    policy: str
    speedup: float
    predicted_error: float


class RankStudy(Record):
    """What a latency policy saw on its way to a plan: the staircases, and the front of error against latency."""

    layers: tuple[LayerStudy, ...]
    front: tuple[FrontPoint, ...]
    timings: int


class CalibratedLatencies(Record):
    """What one calibration added to a latency table; `rows` is how many the table has now."""

    path: Path
    fingerprint: str
    work: Literal["inference", "training"]
    layers: int
    rows_written: int
    rows: int
    quantum: int
    notes: tuple[str, ...] = ()
