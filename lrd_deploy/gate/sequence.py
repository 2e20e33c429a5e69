"""How many launches a gate takes: looks until every case is decided, then a second set for those that fail."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal

from lrd_deploy.gate.judge import set_verdicts
from lrd_deploy.records import CaseEvidence, GatePolicy, LaunchRatio, Verdict

Which = Literal["launches", "confirming"]
Keep = Callable[[str, Which, LaunchRatio], None]
Sources = Mapping[str, Iterator[LaunchRatio]]


def gather(cases: Iterable[CaseEvidence], sources: Sources, policy: GatePolicy, keep: Keep) -> None:
    """Takes launches from the sources until the policy can decide every case, or has no launches left to ask for.

    Args:
        cases: what to decide; their launches are not read.
        sources: fresh launches by case, without end.
        policy: says when to look and whether a failure is confirmed.
        keep: hears of every launch, with its case and its set.
    """
    names = [case.name for case in cases]
    verdicts = _until_decided(names, sources, policy, lambda name, launch: keep(name, "launches", launch))
    failing = [name for name, verdict in verdicts.items() if verdict == "FAIL"]
    if policy.confirm and failing:
        _until_decided(failing, sources, policy, lambda name, launch: keep(name, "confirming", launch))


def most_launches(policy: GatePolicy) -> int:
    """Returns how many launches one gate may take, its confirmation included."""
    return policy.most_launches * (2 if policy.confirm else 1)


def _until_decided(
    names: list[str], sources: Sources, policy: GatePolicy, keep: Callable[[str, LaunchRatio], None]
) -> dict[str, Verdict]:
    sets: dict[str, list[LaunchRatio]] = {name: [] for name in names}
    verdicts: dict[str, Verdict] = dict.fromkeys(names, "INCONCLUSIVE")
    for size in policy.looks:
        for name in names:
            while verdicts[name] == "INCONCLUSIVE" and len(sets[name]) < size:
                sets[name].append(next(sources[name]))
                keep(name, sets[name][-1])
        verdicts = set_verdicts(sets, policy)
        if "INCONCLUSIVE" not in verdicts.values():
            break
    return verdicts
