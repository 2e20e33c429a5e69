"""A whole run in one object."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lrd_deploy.records.environment import Environment
from lrd_deploy.records.measurement import Latency, Ratio
from lrd_deploy.records.record import Record


class Pair(Record):
    """One quantity of the dense and of the low-rank model."""

    dense: float
    lowrank: float


class RunRecord(Record):
    """What `lrd-deploy run` found, in one object. `artifacts` are relative to the run's folder."""

    schema_version: Literal[1] = 1
    version: str
    recipe: str
    accuracy: Pair
    parameters: Pair
    macs: Pair
    speedup: Ratio
    control: Ratio
    latency: dict[Literal["dense", "lowrank"], Latency]
    training_speedup: Ratio
    layers: dict[str, int]
    predicted_speedup: float | None
    seconds: float
    stages: dict[str, float]
    warnings: tuple[str, ...]
    artifacts: dict[str, Path]
    environment: Environment
