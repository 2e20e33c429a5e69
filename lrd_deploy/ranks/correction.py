"""From layers to the whole model: what is outside the planned layers, and what layers cost in each other's company.

Latencies of single layers do not add up to the model's: there is work besides them, and fusion and caches treat a
layer differently alone. Two measurements of the whole model settle both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from lrd_deploy.errors import UsageError
from lrd_deploy.ranks.allocate import QUANTUM
from lrd_deploy.ranks.source import ModelTimer
from lrd_deploy.records import RankPlan

_ROUNDS, _MOST_ROUNDS = 4, 8
_CLOSE_ENOUGH = 0.02  # above the target by at most this share, there is nothing left to win back
_FAR = 0.1  # by more than this, further rounds are worth their time


@dataclass(frozen=True)
class Correction:
    """`model = outside_ms + scale × sum of layers`; without a measurement of the model, just the sum."""

    outside_ms: float = 0.0
    scale: float = 1.0

    def model_ms(self, layers_ms: float) -> float:
        """Returns what the whole model takes when its layers sum to this."""
        return self.outside_ms + self.scale * layers_ms

    def predicted_speedup(self, dense_ms: float, lowrank_ms: float) -> float:
        """Returns the speedup of the whole model, from the sums over layers."""
        return self.model_ms(dense_ms) / self.model_ms(lowrank_ms)

    def budget_ms(self, dense_ms: float, speedup: float) -> float:
        """Returns the sum over layers at which the whole model is that much faster; below 0 where none is."""
        return (self.model_ms(dense_ms) / speedup - self.outside_ms) / self.scale


def corrected_until_met(
    solve: Callable[[Correction, float], RankPlan | None],
    timer: ModelTimer,
    dense: RankPlan,
    fastest: RankPlan,
    target: float,
    goal: str,
) -> RankPlan:
    """Returns the plan with the least predicted error whose *measured* speedup is at least the target.

    Each round solves under the correction so far, measures the whole model, and fits the correction to it. It aims
    at the middle of what is close enough above the target, and higher by as much after every miss: a line that leads
    just below the target would lead there again. Rounds end when a plan is close enough, when none is new, or after
    four; after eight where no plan meets the target, or only by far.

    Args:
        solve: returns the best plan under a correction for a speedup, or None where no combination is predicted to be
            as fast.
        timer: measures a whole model.
        dense: the plan that keeps every layer.
        fastest: the fastest plan within the other budgets; measured where a prediction says that nothing will do.
        target: the speedup wanted.
        goal: the same in words, with the other budgets.

    Raises:
        UsageError: even the fastest combination measures below the target.
    """
    layers_ms = _layers_ms(dense)
    correction = Correction(outside_ms=timer.latencies_ms(dense)[0] - layers_ms)
    tried: list[RankPlan] = []
    met: list[RankPlan] = []
    for number in range(_MOST_ROUNDS):
        aim = target * (1 + _CLOSE_ENOUGH / 2 * (1 + len(tried) - len(met)))
        plan = solve(correction, aim) or fastest
        if any(plan.layers == other.layers for other in tried):
            break
        dense_ms, lowrank_ms = timer.latencies_ms(plan)
        tried.append(plan.model_copy(update={"measured_speedup": dense_ms / lowrank_ms}))
        met = [plan for plan in tried if plan.measured_speedup >= target]
        excess = min((plan.measured_speedup / target - 1 for plan in met), default=inf)
        if excess <= (_CLOSE_ENOUGH if number + 1 < _ROUNDS else _FAR):
            break
        correction = _fitted(dense_ms, lowrank_ms, layers_ms, _layers_ms(plan), correction)
    return min(met, key=lambda plan: plan.predicted_error) if met else _nearest(tried, fastest, timer, target, goal)


def _nearest(tried: list[RankPlan], fastest: RankPlan, timer: ModelTimer, target: float, goal: str) -> RankPlan:
    """The fastest plan tried, with a note; an error where even the fastest combination is below the target."""
    dense_ms, lowrank_ms = timer.latencies_ms(fastest)
    most = max(dense_ms / lowrank_ms, *(plan.measured_speedup for plan in tried))
    if most < target:
        reach = int(most * 100) / 100
        raise UsageError(
            "choosing ranks by latency",
            found=goal,
            accepted=f"the fastest combination of candidates measures {reach:.2f}× on the whole model",
            remedy=f"ask for at most {reach:.2f}×, or allow lower ranks with a smaller {QUANTUM}",
        )
    plan = max(tried, key=lambda plan: plan.measured_speedup)
    note = f"the whole model measured {plan.measured_speedup:.2f}×, below the target of {target:g}×"
    return plan.model_copy(update={"notes": (*plan.notes, note)})


def _layers_ms(plan: RankPlan) -> float:
    return sum(layer.predicted_latency_ms or 0.0 for layer in plan.layers)


def _fitted(
    dense_ms: float, lowrank_ms: float, dense_layers_ms: float, lowrank_layers_ms: float, before: Correction
) -> Correction:
    """The line through both measurements; the old one where they do not span a line."""
    if dense_layers_ms - lowrank_layers_ms < 0.02 * dense_layers_ms or dense_ms <= lowrank_ms:
        return before
    scale = (dense_ms - lowrank_ms) / (dense_layers_ms - lowrank_layers_ms)
    return Correction(outside_ms=dense_ms - scale * dense_layers_ms, scale=scale)
