"""Where latencies come from, as rank choice sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from lrd_deploy.records import Choice, Environment, LayerSignature, RankPlan

Latencies = Mapping[tuple[LayerSignature, Choice], float]


class LatencySource(Protocol):
    """Whatever can say how long a layer takes: a measurement, a stored table, a test's script."""

    environment: Environment | None

    def latencies_ms(self, requests: Mapping[LayerSignature, Sequence[Choice]]) -> Latencies:
        """Returns a latency for the choices asked for, and for others that it happens to know.

        A choice may be missing from the answer: a table does not hold it, or its timings would not settle. Dense is
        never missing.
        """


class ModelTimer(Protocol):
    """Whatever can time a whole model in the form that a plan gives it."""

    def latencies_ms(self, plan: RankPlan) -> tuple[float, float]:
        """Returns the latency of the dense model and of the planned one, measured together."""


@dataclass(frozen=True)
class BalancedLatency:
    """Inference and training weighed together, in milliseconds of inference.

    Attributes:
        inference: of a forward pass on the deployment backend.
        training: of a training step.
        weight: how much training counts, from 0 to 1.
        scale: milliseconds of inference that a millisecond of training stands for, so that both dense models weigh
            the same.
    """

    inference: LatencySource
    training: LatencySource
    weight: float
    scale: float

    @property
    def environment(self) -> Environment | None:
        """Where inference was timed."""
        return self.inference.environment

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the plan should know about its latencies."""
        balance = f"latencies are {1 - self.weight:.0%} inference and {self.weight:.0%} training, in ms of inference"
        return (balance, *getattr(self.inference, "notes", ()), *getattr(self.training, "notes", ()))

    def latencies_ms(self, requests: Mapping[LayerSignature, Sequence[Choice]]) -> Latencies:
        """Returns the weighted latencies of the choices that both know."""
        inference, training = self.inference.latencies_ms(requests), self.training.latencies_ms(requests)
        return {
            key: (1 - self.weight) * inference[key] + self.weight * self.scale * training[key]
            for key in inference.keys() & training.keys()
        }
