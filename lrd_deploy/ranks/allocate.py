"""The best combination of candidates under budgets, as a mixed-integer linear programme."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lrd_deploy.errors import UsageError
from lrd_deploy.records import Choice

_GAP = 1e-3  # a combination this close to the best, relatively, is the best: latencies are known less well

QUANTUM = "quantum ('quantum' in a recipe, --quantum for an ONNX file)"


@dataclass(frozen=True)
class Candidate:
    """One thing that could become of one layer, and what it costs.

    Attributes:
        choice: the form and rank.
        latency_ms: of all the layer's calls in one pass.
        loss: what it adds to the squared relative error of the model's outputs, as predicted.
        parameters: weights that remain.
        squared_error: the layer's own squared relative error.
    """

    choice: Choice
    latency_ms: float
    loss: float
    parameters: int
    squared_error: float = 0.0


@dataclass(frozen=True)
class Budget:
    """Upper limits on the sums over all layers; None is no limit."""

    latency_ms: float | None = None
    loss: float | None = None
    parameters: float | None = None


def allocate(options: Sequence[Sequence[Candidate]], budget: Budget) -> list[Candidate] | None:
    """Returns one candidate per layer within the budget, or None where no combination is.

    Under a latency budget the loss is made least, else the latency. One binary variable per candidate, solved by
    HiGHS to within 0.1 % of the optimum.

    Args:
        options: per layer, at least one.
        budget: what is not limited may be anything.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp  # 0.4 s to import

    flat = [candidate for layer in options for candidate in layer]
    owner = np.repeat(np.arange(len(options)), [len(layer) for layer in options])
    one_each = (owner[None, :] == np.arange(len(options))[:, None]).astype(float)  # (layers, candidates)
    constraints = [LinearConstraint(one_each, 1, 1)]
    for name in ("latency_ms", "loss", "parameters"):
        limit = getattr(budget, name)
        if limit is not None:
            scale = abs(limit) or 1.0  # HiGHS' tolerances are absolute
            constraints.append(LinearConstraint(_column(flat, name)[None, :] / scale, -np.inf, limit / scale))
    goal = _column(flat, "loss" if budget.latency_ms is not None else "latency_ms")
    solution = milp(
        goal / (goal.max() or 1.0),
        integrality=np.ones(len(flat)),
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": _GAP, "time_limit": 30.0, "presolve": False},  # with it HiGHS prints more, unasked
    )
    if solution.x is None:
        return None
    picked = np.flatnonzero(solution.x > 0.5)
    return [flat[index] for index in picked]  # ascending, hence one per layer in order


def _column(candidates: Sequence[Candidate], name: str) -> NDArray[np.float64]:
    return np.array([getattr(candidate, name) for candidate in candidates], dtype=float)


def undominated(candidates: Sequence[Candidate], *, most: int) -> list[Candidate]:
    """Returns the candidates that no other beats in latency, loss and parameters at once, at most so many.

    Where more are left, those nearest to evenly spaced latencies stay.
    """
    ordered = sorted(candidates, key=lambda c: (c.latency_ms, c.loss, c.parameters))
    kept: list[Candidate] = []
    for candidate in ordered:  # every earlier one is at least as fast
        if not any(other.loss <= candidate.loss and other.parameters <= candidate.parameters for other in kept):
            kept.append(candidate)
    if len(kept) <= most:
        return kept
    latencies = np.array([candidate.latency_ms for candidate in kept])
    wanted = np.geomspace(latencies[0], latencies[-1], most)
    picked = {int(np.abs(latencies - latency).argmin()) for latency in wanted}
    return [kept[index] for index in sorted(picked)]


def out_of_reach(options: Sequence[Sequence[Candidate]], wanted: str, *, parameters: bool = False) -> UsageError:
    """Returns the error for a budget that no combination meets: how far the candidates go, each by itself.

    Args:
        options: per layer, dense first.
        wanted: the budget in words.
        parameters: whether it limits them.
    """
    dense_ms = sum(layer[0].latency_ms for layer in options)
    fastest = dense_ms / sum(min(option.latency_ms for option in layer) for layer in options)
    weights = sum(layer[0].parameters for layer in options)
    fewest = sum(min(option.parameters for option in layer) for layer in options) / weights if weights else 1.0
    ask = f"ask for at most {int(fastest * 100) / 100:.2f}×"
    if parameters:
        ask += f" and allow more than {percent(fewest)} of the parameters"
    return UsageError(
        "choosing ranks by latency",
        found=wanted,
        accepted=f"by themselves the candidates reach {fastest:.2f}× and {percent(fewest)} of the parameters",
        remedy=f"{ask}, or allow lower ranks with a smaller {QUANTUM}",
    )


def error_out_of_reach(wanted: str, least: float) -> UsageError:
    """Returns the error for a limit on the predicted error below `least`, the smallest of any plan that would do."""
    return UsageError(
        "choosing ranks by latency",
        found=wanted,
        accepted=f"the least predicted error of a plan that would do is {least:.3g}",
        remedy=f"allow {rounded_up(least):g}, or finer ranks with a smaller {QUANTUM}",
    )


def percent(share: float) -> str:
    """Returns a share in percent, to three digits."""
    return f"{100 * share:.3g}%"


def rounded_up(value: float) -> float:
    """Returns two significant digits, never below the value."""
    text = float(f"{value:.1e}")
    return text if text >= value else float(f"{value * 1.05:.1e}")
