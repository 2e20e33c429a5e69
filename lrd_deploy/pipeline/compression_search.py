"""Looking for the plan that meets a goal once the model is really built: predictions say where, measurements decide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, sqrt
from pathlib import Path

from lrd_deploy.errors import UsageError
from lrd_deploy.pipeline.planning import checked
from lrd_deploy.ranks.allocate import rounded_up
from lrd_deploy.ranks.by_latency import LatencyPlanner
from lrd_deploy.ranks.source import ModelTimer
from lrd_deploy.records import BiasCorrection, Comparison, OutputDifference, RankPlan, Skipped

_SPEEDUP_ROUNDS, _ERROR_ROUNDS = 3, 6
_CLOSE_ENOUGH = 0.9  # of the allowed error: from there on there is little left to win


@dataclass(frozen=True)
class Built:
    """A plan, carried out.

    Attributes:
        plan: what was asked for.
        path: the model.
        skipped: what was asked for and not done.
        outputs: on held-out samples, against the dense model.
        uncorrected: the same with the biases as they were.
        corrections: of the biases, whether they were kept or not.
        is_corrected: whether they were kept.
    """

    plan: RankPlan
    path: Path
    skipped: tuple[Skipped, ...]
    outputs: OutputDifference
    uncorrected: OutputDifference
    corrections: tuple[BiasCorrection, ...]
    is_corrected: bool


Build = Callable[[RankPlan], Built]


def fast_enough(
    planner: LatencyPlanner, timer: ModelTimer | None, build: Build, compare: Callable[[Built], Comparison]
) -> tuple[Built, Comparison]:
    """Returns the model with the least predicted error whose measured speedup reaches the planner's target.

    It does where its interval reaches it: a wider interval is no reason to compress more.

    The target of the plan is raised where fresh processes measure less than it promised. Without a timer, latencies
    are another machine's, and the first plan is taken as it is.

    Raises:
        UsageError: the target is out of reach; the message names what is not.
    """
    policy = planner.policy
    target, asked = policy.target_speedup, policy.target_speedup
    tried: list[tuple[Built, Comparison]] = []
    for _ in range(_SPEEDUP_ROUNDS):
        try:
            plan = planner.aiming_at(policy.model_copy(update={"target_speedup": asked})).plan(timer)
        except UsageError:
            if not tried:
                raise
            break
        built = build(checked(plan))
        comparison = compare(built)
        if timer is None or comparison.speedup.high >= target:
            return built, comparison
        tried.append((built, comparison))
        asked *= target / comparison.speedup.estimate
    most = max(comparison.speedup.estimate for _, comparison in tried)
    reach = int(most * 100) / 100
    raise UsageError(
        "compressing by measured latency",
        found=f"a speedup of {target:g}",
        accepted=f"the fastest plan tried measures {reach:.2f}× in fresh processes",
        remedy=f"ask for at most {reach:.2f}×",
    )


def within_error(planner: LatencyPlanner, build: Build) -> Built:
    """Returns the fastest model found whose outputs on held-out samples are within the planner's error.

    How far outputs move is predicted from single layers, which is a guide and no more: the predicted error aimed at is
    moved until the measured one is just within the limit.

    Raises:
        UsageError: no plan that factorises anything is within it; the message names the nearest that was found.
    """
    limit = planner.policy.max_error
    aimed, low, high = limit, 0.0, inf
    tried: list[Built] = []
    for _ in range(_ERROR_ROUNDS):
        plan = _planned_within(planner, aimed)
        if plan is None or any(plan.layers == built.plan.layers for built in tried):
            break
        tried.append(build(plan))
        error = tried[-1].outputs.relative_l2
        if _CLOSE_ENOUGH * limit <= error <= limit:
            break
        low, high = (aimed, high) if error <= limit else (low, aimed)
        aimed = _next(aimed, low, high, limit / error if error else inf)
    if not any(built.outputs.relative_l2 <= limit for built in tried):
        mildest = planner.mildest_plan()
        tried += [build(mildest)] if mildest is not None else []
    met = [built for built in tried if built.outputs.relative_l2 <= limit]
    if not met:
        raise _out_of_reach(tried, limit)
    return max(met, key=lambda built: built.plan.predicted_speedup)


def _planned_within(planner: LatencyPlanner, error: float) -> RankPlan | None:
    """The fastest plan that is predicted to be within an error; None where that is the dense model."""
    try:
        plan = planner.aiming_at(planner.policy.model_copy(update={"max_error": error})).plan()
    except UsageError:  # so tight that the solver finds not even the dense model within it
        return None
    return plan if plan.factorised else None


def _next(aimed: float, low: float, high: float, ratio: float) -> float:
    """The predicted error to aim at next: in proportion at first, between two known ends later."""
    if low > 0 and high < inf:
        return sqrt(low * high)
    return aimed * min(max(ratio, 1.1), 2.0) if low > 0 else aimed * ratio * _CLOSE_ENOUGH


def _out_of_reach(tried: list[Built], limit: float) -> UsageError:
    if not tried:
        return UsageError(
            "compressing within an error",
            found="no form of any layer that is faster than dense",
            accepted="a model with at least one layer that factors make faster",
            remedy="keep the model as it is, or compress for another batch or number of threads",
        )
    least = min(built.outputs.relative_l2 for built in tried)
    return UsageError(
        "compressing within an error",
        found=f"at most {limit:g} (relative L2 of the outputs on held-out samples)",
        accepted=f"the mildest plan that makes the model faster is off by {least:.3g}",
        remedy=f"allow {rounded_up(least):g}, or fine-tune the factors with a recipe",
    )
