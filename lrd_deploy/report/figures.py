"""The report's figures, as SVG that reads on light and dark ground."""

from __future__ import annotations

from lrd_deploy.records import Comparison, KeepDense, RankPlan, TrainedModel
from lrd_deploy.report.canvas import DENSE, INK, LOWRANK, add_legend, as_svg, new_axes

_SHADE = {"A": "#2b8bd9", "B": "#e8a33d"}


def training_curves(dense: TrainedModel, lowrank: TrainedModel) -> str:
    """Test accuracy over time, with every epoch shaded by the group that stood still."""
    figure, axes = new_axes(width=7.0, height=2.8)
    for trained, color, label in ((dense, DENSE, "dense"), (lowrank, LOWRANK, "low-rank")):
        if trained.epochs:
            axes.plot(*_over_time(trained), color=color, marker="o", markersize=3, label=label)
    started = 0.0
    for epoch in lowrank.epochs:
        groups = tuple(epoch.frozen)
        if len(groups) == 1 and groups[0] != "none":  # groups that change within an epoch would be stripes
            axes.axvspan(started, started + epoch.seconds, color=_SHADE[groups[0]], alpha=0.12, linewidth=0)
        started += epoch.seconds
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("test accuracy, %")
    add_legend(axes)
    return as_svg(figure)


def launch_ratios(comparison: Comparison) -> str:
    """The speedup of each launch, and the interval of all."""
    figure, axes = new_axes(width=7.0, height=1.6)
    ratios, interval = comparison.per_launch_speedup, comparison.speedup
    axes.axvspan(interval.low, interval.high, color=LOWRANK, alpha=0.15, linewidth=0)
    axes.axvline(interval.estimate, color=LOWRANK)
    axes.axvline(1.0, color=INK, linestyle=":")
    axes.plot(ratios, range(1, len(ratios) + 1), "o", color=LOWRANK, markersize=4)
    axes.set_xlim(left=min(0.95, *ratios))
    axes.set_xlabel("speedup in each launch; the band is the interval, the dotted line no speedup")
    axes.set_ylabel("launch")
    return as_svg(figure)


def layer_latencies(plan: RankPlan) -> str:
    """Dense latency against the chosen form's, layer by layer; empty where the plan measured nothing."""
    layers = [layer for layer in plan.layers if layer.dense_latency_ms is not None]
    if not layers:
        return ""
    figure, axes = new_axes(width=7.0, height=0.6 + 0.24 * len(layers))
    rows = range(len(layers))
    axes.barh(rows, [layer.dense_latency_ms for layer in layers], color=DENSE, alpha=0.45, height=0.75, label="dense")
    chosen = [layer.predicted_latency_ms for layer in layers]
    axes.barh(rows, chosen, color=LOWRANK, height=0.4, label="chosen")
    names = [f"{_short(layer.name)}  {'' if isinstance(layer.choice, KeepDense) else layer.choice}" for layer in layers]
    axes.set_yticks(list(rows), [name.replace("$", r"\$") for name in names])
    axes.invert_yaxis()
    axes.set_xlabel("ms")
    add_legend(axes)
    return as_svg(figure)


def _over_time(trained: TrainedModel) -> tuple[list[float], list[float]]:
    seconds, total = [], 0.0
    for epoch in trained.epochs:
        total += epoch.seconds
        seconds.append(total)
    return seconds, [100 * epoch.accuracy for epoch in trained.epochs]


def _short(name: str, longest: int = 44) -> str:
    """The end of a dotted name, cut at a dot where there is one."""
    if len(name) <= longest:
        return name
    end = name[-longest:]
    return "…" + (end.partition(".")[2] or end)
