"""The report's figures, as SVG that reads on light and dark ground."""

from __future__ import annotations

import io
from typing import Any

from lrd_deploy.records import Comparison, KeepDense, RankPlan, TrainedModel

_INK, _DENSE, _LOWRANK = "#7a7f87", "#7a7f87", "#d9542b"
_SHADE = {"A": "#2b8bd9", "B": "#e8a33d"}


def training_curves(dense: TrainedModel, lowrank: TrainedModel) -> str:
    """Test accuracy over time, with every epoch shaded by the group that stood still."""
    figure, axes = _axes(width=7.0, height=2.8)
    for trained, color, label in ((dense, _DENSE, "dense"), (lowrank, _LOWRANK, "low-rank")):
        if trained.epochs:
            axes.plot(*_over_time(trained), color=color, marker="o", markersize=3, label=label)
    started = 0.0
    for epoch in lowrank.epochs:
        if epoch.frozen != "none":
            axes.axvspan(started, started + epoch.seconds, color=_SHADE[epoch.frozen], alpha=0.12, linewidth=0)
        started += epoch.seconds
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("test accuracy, %")
    _legend(axes)
    return _svg(figure)


def launch_ratios(comparison: Comparison) -> str:
    """The speedup of each launch, and the interval of all."""
    figure, axes = _axes(width=7.0, height=1.6)
    ratios, interval = comparison.per_launch_speedup, comparison.speedup
    axes.axvspan(interval.low, interval.high, color=_LOWRANK, alpha=0.15, linewidth=0)
    axes.axvline(interval.estimate, color=_LOWRANK)
    axes.axvline(1.0, color=_INK, linestyle=":")
    axes.plot(ratios, range(1, len(ratios) + 1), "o", color=_LOWRANK, markersize=4)
    axes.set_xlim(left=min(0.95, *ratios))
    axes.set_xlabel("speedup in each launch; the band is the interval, the dotted line no speedup")
    axes.set_ylabel("launch")
    return _svg(figure)


def layer_latencies(plan: RankPlan) -> str:
    """Dense latency against the chosen form's, layer by layer; empty where the plan measured nothing."""
    layers = [layer for layer in plan.layers if layer.dense_latency_ms is not None]
    if not layers:
        return ""
    figure, axes = _axes(width=7.0, height=0.6 + 0.24 * len(layers))
    rows = range(len(layers))
    axes.barh(rows, [layer.dense_latency_ms for layer in layers], color=_DENSE, alpha=0.45, height=0.75, label="dense")
    chosen = [layer.predicted_latency_ms for layer in layers]
    axes.barh(rows, chosen, color=_LOWRANK, height=0.4, label="chosen")
    names = [f"{_short(layer.name)}  {'' if isinstance(layer.choice, KeepDense) else layer.choice}" for layer in layers]
    axes.set_yticks(list(rows), [name.replace("$", r"\$") for name in names])
    axes.invert_yaxis()
    axes.set_xlabel("ms")
    _legend(axes)
    return _svg(figure)


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


def _axes(*, width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # 0.4 s to import; Figure itself needs no display

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.tick_params(colors=_INK, labelsize=8)
    axes.xaxis.label.set(color=_INK, size=8)
    axes.yaxis.label.set(color=_INK, size=8)
    for side, spine in axes.spines.items():
        spine.set_color(_INK)
        spine.set_visible(side in {"left", "bottom"})
    return figure, axes


def _legend(axes: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, labelcolor=_INK)


def _svg(figure: Any) -> str:
    """The bare <svg> element; text becomes paths, so that nothing in it is markup or needs a font."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "lrd-deploy"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
