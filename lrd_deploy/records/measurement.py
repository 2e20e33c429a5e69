"""Measured latencies and ratios."""

from __future__ import annotations

from lrd_deploy.records.environment import Environment
from lrd_deploy.records.execution import Execution
from lrd_deploy.records.record import Record
from lrd_deploy.records.training import FrozenGroup


class Latency(Record):
    """One arm alone, at deployment settings. A percentile is None where the sample is too small to state it.

    `h2d_ms` and `d2h_ms` copy all inputs to a GPU, and all outputs from it; None where there is none, or the other
    figures hold the copies already.
    """

    min_ms: float
    p50_ms: float
    p90_ms: float | None
    p99_ms: float | None
    cold_start_ms: float
    throughput_per_s: float
    samples: int
    h2d_ms: float | None = None
    d2h_ms: float | None = None


class Ratio(Record):
    """A ratio with its two-sided interval; `demonstrated` when the interval does not hold 1."""

    estimate: float
    low: float
    high: float
    confidence: float
    demonstrated: bool
    launches: int


class Comparison(Record):
    """Baseline against candidate: `speedup` is base over candidate, `control` is base over an identical base."""

    base: Latency
    candidate: Latency
    speedup: Ratio
    control: Ratio
    backend: str
    batch: int
    threads: int
    per_launch_speedup: tuple[float, ...]
    warnings: tuple[str, ...]
    environment: Environment
    execution: Execution = Execution()


class TrainingSpeedup(Record):
    """Step time of dense training over step time of fine-tuning, averaged over the phases of the schedule."""

    speedup: Ratio
    dense_step_ms: float
    lowrank_step_ms: dict[FrozenGroup, float]
    batch: int
    threads: int
    per_launch_speedup: tuple[float, ...]
    environment: Environment
    device: str = "cpu"
