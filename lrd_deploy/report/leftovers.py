"""What a run did not do, and why: layers that stayed dense, rewrites that were skipped, engines that were refused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from lrd_deploy.records import BuiltEngines, KeepDense, RankPlan, RewriteReport


class Leftover(NamedTuple):
    """Things that were left for the same reason, in the order in which they were met."""

    reason: str
    names: tuple[str, ...]


def dense_layers(plan: RankPlan) -> list[Leftover]:
    """Returns the layers that stay dense, by reason."""
    return _by_reason((layer.reason, layer.name) for layer in plan.layers if isinstance(layer.choice, KeepDense))


def skipped_rewrites(report: RewriteReport | None) -> list[Leftover]:
    """Returns the nodes that a rule left alone, by rule and reason."""
    return _by_reason((f"{entry.rule}: {entry.reason}", entry.node) for entry in report.skipped) if report else []


def refused_engines(built: BuiltEngines | None) -> list[Leftover]:
    """Returns the engines that a backend would not build, by its words."""
    return _by_reason((reason, name) for name, reason in built.refused.items()) if built else []


def _by_reason(pairs: Iterable[tuple[str, str]]) -> list[Leftover]:
    found: dict[str, list[str]] = {}
    for reason, name in pairs:
        found.setdefault(reason, []).append(name)
    return [Leftover(reason, tuple(names)) for reason, names in found.items()]
