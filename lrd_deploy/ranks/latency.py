"""Choosing ranks by measured latency: which ranks to time, and the best combination under a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lrd_deploy.errors import UsageError
from lrd_deploy.ranks.cost import saves_parameters
from lrd_deploy.recipe.policies import LatencyRank
from lrd_deploy.records import SVD, Choice, LayerSignature, Tucker2


@dataclass(frozen=True)
class Candidate:
    """One thing that could become of one layer, and what it costs."""

    choice: Choice
    latency_ms: float
    squared_error: float
    parameters: int


def latency_candidates(signature: LayerSignature, policy: LatencyRank) -> tuple[Choice, ...]:
    """Returns the choices worth timing: at most `policy.steps` levels, evenly spread, all multiples of the quantum.

    Only choices with fewer weights than the layer come back; Tucker-2 ranks keep the channels' proportion.
    """
    s, quantum = signature, policy.quantum
    full = min(s.in_channels, s.out_channels) // quantum  # the finest grid there is
    candidates: list[Choice] = []
    for level in range(1, full + 1):
        if s.pointwise:
            choice = SVD(rank=level * quantum)
        else:
            rank_in, rank_out = (_on_grid(level / full * width, quantum) for width in (s.in_channels, s.out_channels))
            choice = Tucker2(rank_in=rank_in, rank_out=rank_out)
        if saves_parameters(s, choice):
            candidates.append(choice)
    if len(candidates) <= policy.steps:
        return tuple(candidates)
    picked = np.linspace(0, len(candidates) - 1, policy.steps).round().astype(int)
    return tuple(candidates[index] for index in picked)


def choose_by_latency(options: Sequence[Sequence[Candidate]], policy: LatencyRank) -> list[Candidate]:
    """Returns one candidate per layer: least summed squared error within the latency and parameter budgets.

    A mixed-integer linear programme with one binary variable per candidate, solved to optimality by HiGHS.

    Args:
        options: per layer, dense first.
        policy: the budgets, as shares of the dense sums.

    Raises:
        UsageError: no combination is fast or small enough; the message says how far the candidates go.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp  # 0.4 s to import

    flat = [candidate for layer in options for candidate in layer]
    owner = np.repeat(np.arange(len(options)), [len(layer) for layer in options])
    one_each = (owner[None, :] == np.arange(len(options))[:, None]).astype(float)  # (layers, candidates)
    latency = np.array([candidate.latency_ms for candidate in flat])
    budget_ms = sum(layer[0].latency_ms for layer in options) / policy.target_speedup
    constraints = [LinearConstraint(one_each, 1, 1), LinearConstraint(latency[None, :], 0, budget_ms)]
    if policy.max_parameters is not None:
        count = np.array([candidate.parameters for candidate in flat], dtype=float)
        most = policy.max_parameters * sum(layer[0].parameters for layer in options)
        constraints.append(LinearConstraint(count[None, :], 0, most))
    solution = milp(
        np.array([candidate.squared_error for candidate in flat]),
        integrality=np.ones(len(flat)),
        bounds=Bounds(0, 1),
        constraints=constraints,
    )
    if solution.x is None:
        raise _out_of_reach(options, policy)
    picked = np.flatnonzero(solution.x > 0.5)
    return [flat[index] for index in picked]  # ascending, hence one per layer in order


def _out_of_reach(options: Sequence[Sequence[Candidate]], policy: LatencyRank) -> UsageError:
    dense_ms = sum(layer[0].latency_ms for layer in options)
    fastest = dense_ms / sum(min(option.latency_ms for option in layer) for layer in options)
    weights = sum(layer[0].parameters for layer in options)
    fewest = sum(min(option.parameters for option in layer) for layer in options) / weights if weights else 1.0
    wanted = f"a speedup of {policy.target_speedup:g}"
    if policy.max_parameters is not None:
        wanted += f" with at most {policy.max_parameters:.0%} of the parameters"
    return UsageError(
        "choosing ranks by latency",
        found=wanted,
        accepted=f"by themselves the candidates reach {fastest:.2f}× and {fewest:.0%} of the parameters",
        remedy="ask for less, or allow lower ranks with a smaller 'quantum'",
    )


def _on_grid(rank: float, quantum: int) -> int:
    return max(round(rank / quantum), 1) * quantum
