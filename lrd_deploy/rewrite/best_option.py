"""Choosing among what could be done to factor chains, by latency: pure, so that scripted times can test it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lrd_deploy.rewrite.rank_options import RankOption

_MARGIN = 0.05  # timings are not better than that, and a graph is not rewritten for less


@dataclass(frozen=True)
class TimedOption:
    """An option, what the chain would take then, and the squared relative error that it adds."""

    option: RankOption
    latency_ms: float
    loss: float = 0.0


def best_options(chains: Sequence[Sequence[TimedOption]], budget: float) -> list[TimedOption]:
    """Returns one option per chain: the fastest that loses nothing, or a truncation where the budget has room.

    Another option must be 5 % faster to be taken. Truncations are taken in the order of what they lose for the time
    that they save, as far as the budget goes.

    Args:
        chains: per chain its options, staying first.
        budget: the most that the losses may sum to; 0 allows only truncations that lose nothing.
    """
    chosen = [_fastest(options) for options in chains]
    steps = [
        (option.loss / (exact.latency_ms - option.latency_ms), number, option)
        for number, (options, exact) in enumerate(zip(chains, chosen, strict=True))
        for option in options
        if option.option.action == "truncate" and _pays(option, exact)
    ]
    truncated: set[int] = set()
    for _, number, option in sorted(steps, key=lambda step: step[:2]):
        if number not in truncated and option.loss <= budget:
            chosen[number] = option
            truncated.add(number)
            budget -= option.loss
    return chosen


def _fastest(options: Sequence[TimedOption]) -> TimedOption:
    exact = [option for option in options if option.option.action != "truncate"]
    best = min(exact, key=lambda option: option.latency_ms)
    return best if _pays(best, exact[0]) else exact[0]


def _pays(option: TimedOption, other: TimedOption) -> bool:
    return option.latency_ms < (1 - _MARGIN) * other.latency_ms
