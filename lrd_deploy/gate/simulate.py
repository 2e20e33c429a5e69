"""Gates that are played through on recorded launches: how often the verdict is wrong on this machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from math import log1p

import numpy as np

from lrd_deploy.errors import UsageError
from lrd_deploy.gate.judge import judge_cases
from lrd_deploy.gate.sequence import gather, most_launches
from lrd_deploy.records import CaseEvidence, CaseVerdict, GatePolicy, LaunchRatio, SlowdownRates


def play(pool: Sequence[LaunchRatio], policy: GatePolicy, *, slowdown: float = 0.0) -> CaseVerdict:
    """Plays one gate on launches of a model beside itself, in their order, and returns its verdict.

    Args:
        pool: as many launches as a gate may take.
        policy: the gate's.
        slowdown: by which the candidate's times are scaled.
    """
    sets: dict[str, list[LaunchRatio]] = {"launches": [], "confirming": []}
    slowed: Iterator[LaunchRatio] = (_slower(launch, slowdown) for launch in pool)
    case = CaseEvidence(name="case", batch=1, threads=1)
    gather([case], {"case": slowed}, policy, lambda _name, which, launch: sets[which].append(launch))
    return judge_cases([case.model_copy(update={name: tuple(found) for name, found in sets.items()})], policy)[0]


def resampled_rates(
    pool: Sequence[LaunchRatio], policy: GatePolicy, *, slowdown: float, gates: int, seed: int
) -> SlowdownRates:
    """Plays gates on launches drawn anew from the pool for each; no launch serves twice within a gate.

    Raises:
        UsageError: the pool is too small for one gate.
    """
    random = np.random.default_rng(seed)
    _check_size(len(pool), policy)
    verdicts = [play(_drawn(pool, most_launches(policy), random), policy, slowdown=slowdown) for _ in range(gates)]
    return _rates(verdicts, slowdown)


def disjoint_rates(pool: Sequence[LaunchRatio], policy: GatePolicy, *, slowdown: float) -> SlowdownRates:
    """Plays as many gates as share no launch; each takes what it needs and leaves the rest to the next."""
    _check_size(len(pool), policy)
    verdicts, start = [], 0
    while len(pool) - start >= most_launches(policy):
        verdicts.append(play(pool[start:], policy, slowdown=slowdown))
        start += verdicts[-1].all_launches
    return _rates(verdicts, slowdown)


def _drawn(pool: Sequence[LaunchRatio], size: int, random: np.random.Generator) -> list[LaunchRatio]:
    """Launches in random order, those that loaded the baseline first and last in turn, as in a real gate."""
    by_order = [[launch for launch in pool if launch.base_first is first] for first in (True, False)]
    shuffled = [[group[index] for index in random.permutation(len(group))] for group in by_order]
    return [launch for launch in chain.from_iterable(zip_longest(*shuffled)) if launch is not None][:size]


def _slower(launch: LaunchRatio, slowdown: float) -> LaunchRatio:
    scaled = {"candidate": launch.candidate + log1p(slowdown), "candidate_ms": launch.candidate_ms * (1 + slowdown)}
    return launch.model_copy(update=scaled)


def _rates(verdicts: Sequence[CaseVerdict], slowdown: float) -> SlowdownRates:
    counts, gates = Counter(case.verdict for case in verdicts), len(verdicts)
    return SlowdownRates(
        slowdown=slowdown,
        gates=gates,
        fail=counts["FAIL"] / gates,
        passed=counts["PASS"] / gates,
        inconclusive=counts["INCONCLUSIVE"] / gates,
        mean_launches=sum(case.all_launches for case in verdicts) / gates,
    )


def _check_size(launches: int, policy: GatePolicy) -> None:
    needed = most_launches(policy)
    if launches < needed:
        raise UsageError(
            "playing gates on recorded launches",
            found=f"{launches} launches",
            accepted=f"at least {needed}, which one gate may take",
            remedy="record more launches",
        )
