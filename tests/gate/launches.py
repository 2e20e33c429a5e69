"""Simulated launches with the noise that was measured on shared machines: see docs/gate.md."""

import numpy as np

from lrd_deploy.records import CaseEvidence, LaunchRatio

# Per-launch SD and the effect of being loaded first, as shares: one thread beside other jobs, beside bursty
# neighbours, and two threads. Bursts are launches in which a neighbour hit one arm only.
CONDITIONS = {
    "calm": {"sd": 0.012, "order": 0.013, "bursts": 0.0},
    "bursty": {"sd": 0.021, "order": 0.017, "bursts": 0.05},
}


def simulated(count, condition="calm", *, slowdown=0.0, seed=0):
    """Launches of a candidate that is slower by `slowdown`; sessions loaded first are slower."""
    random = np.random.default_rng(seed)
    noise = CONDITIONS[condition]
    found = []
    for number in range(count):
        base_first = number % 2 == 0
        order = noise["order"] / 2 * (-1 if base_first else 1)
        # The remaining bias of a process; SD as measured holds the order's effect, so the rest is what is left.
        rest = np.sqrt(max(noise["sd"] ** 2 - (noise["order"] / 2) ** 2, 1e-6))
        candidate, control = (
            order + rest * random.standard_normal() + (random.random() < noise["bursts"]) * random.uniform(-0.2, 0.2)
            for _ in range(2)
        )
        found.append(launch(np.log1p(slowdown) + candidate, control, base_first=base_first))
    return found


def launch(candidate=0.0, control=0.0, *, base_first=True, base_ms=2.0):
    return LaunchRatio(
        candidate=float(candidate),
        control=float(control),
        base_ms=base_ms,
        candidate_ms=base_ms * float(np.exp(candidate)),
        base_first=base_first,
    )


def around(center, *, spread=0.004, count=6, control=0.0):
    """Launches whose trimmed mean is exactly `center`, as a share."""
    steps = np.linspace(-spread, spread, count)
    return tuple(launch(np.log1p(center) + step, control + step / 2) for step in steps)


def case(launches, confirming=(), name="batch 8"):
    return CaseEvidence(name=name, batch=8, threads=1, launches=tuple(launches), confirming=tuple(confirming))
