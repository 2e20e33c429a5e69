"""A plan as pictures: every layer's staircase with the chosen point, and the front of error against latency."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

from lrd_deploy.records import Choice, KeepDense, LayerStudy, RankPlan, RankStudy
from lrd_deploy.report.canvas import DENSE, INK, LOWRANK, add_legend, as_svg, new_axes

_COLUMNS, _MOST_LAYERS = 3, 30
_FORMS = {
    "svd": ("#2b8bd9", "svd"),
    "channel_svd": ("#2b8bd9", "channel svd"),
    "channel_svd up": ("#7a52c7", "channel svd, kernel last"),
    "spatial_svd": ("#3fa34d", "spatial svd"),
    "tucker2": ("#e8a33d", "tucker2"),
}


def staircases(study: RankStudy) -> str:
    """Returns, for each distinct layer, latency against rank for every choice that no other beats.

    Filled marks were timed, hollow ones predicted from those; the line is dense, the ring the choice.
    """
    distinct = list({layer.signature: layer for layer in study.layers}.values())
    shown = sorted(distinct, key=lambda layer: -layer.dense_latency_ms)[:_MOST_LAYERS]
    rows = max(ceil(len(shown) / _COLUMNS), 1)
    figure, plots = new_axes(width=9.0, height=2.1 * rows + 0.4, rows=rows, columns=_COLUMNS)
    for plot, layer in zip(plots.flat, shown, strict=False):
        _staircase(plot, layer)
    for plot in list(plots.flat)[len(shown) :]:
        plot.set_visible(False)
    _legend_of_forms(figure, shown)
    return as_svg(figure)


def pareto_front(study: RankStudy, plan: RankPlan) -> str:
    """Returns predicted error against predicted speedup: the latency policy's front, the plan, other policies."""
    figure, plot = new_axes(width=7.0, height=3.4)
    front = sorted((point.speedup, point.predicted_error) for point in study.front if point.policy == "latency")
    plot.plot(*zip(*front, strict=True), color=LOWRANK, marker="o", markersize=3, label="latency, the front")
    others = [point for point in study.front if point.policy != "latency"]
    for point, marker in zip(others, "sD^vP*X", strict=False):
        plot.plot(point.speedup, point.predicted_error, marker, color=DENSE, label=point.policy)
    chosen = _chosen_point(study, plan)
    if chosen:
        plot.plot(*chosen, "o", color=LOWRANK, markersize=11, fillstyle="none", markeredgewidth=2, label="this plan")
    plot.axvline(1.0, color=INK, linestyle=":")
    plot.set_xlabel("predicted speedup of the layers together")
    plot.set_ylabel("predicted relative error of the outputs")
    plot.set_ylim(bottom=0)
    add_legend(plot)
    return as_svg(figure)


def _chosen_point(study: RankStudy, plan: RankPlan) -> tuple[float, float] | None:
    latencies = [layer.predicted_latency_ms for layer in plan.layers if layer.predicted_latency_ms is not None]
    dense = [layer.dense_latency_ms for layer in plan.layers if layer.dense_latency_ms is not None]
    if not study.layers or plan.predicted_error is None:
        return None
    return sum(dense) / sum(latencies), plan.predicted_error


def _staircase(plot: Any, layer: LayerStudy) -> None:
    for form, (color, _) in _FORMS.items():
        points = sorted(
            (_rank(point.choice), point.latency_ms, point.timed)
            for point in layer.points
            if _form(point.choice) == form
        )
        for timed, style in ((True, "full"), (False, "none")):
            marks = [(rank, latency) for rank, latency, was_timed in points if was_timed == timed]
            if marks:
                plot.plot(*zip(*marks, strict=True), "o", color=color, markersize=3, fillstyle=style)
    plot.axhline(layer.dense_latency_ms, color=DENSE, linewidth=1)
    chosen = [point for point in layer.points if point.choice == layer.chosen]
    for point in chosen:
        plot.plot(
            _rank(point.choice), point.latency_ms, "o", color=LOWRANK, markersize=9, fillstyle="none", markeredgewidth=2
        )
    plot.set_title(str(layer.signature).replace("$", r"\$"), fontsize=7, color=INK)
    plot.set_ylim(bottom=0)
    plot.set_ylabel("ms")
    plot.set_xlabel("stays dense" if isinstance(layer.chosen, KeepDense) else str(layer.chosen))


def _legend_of_forms(figure: Any, layers: Sequence[LayerStudy]) -> None:
    from matplotlib.lines import Line2D

    seen = {_form(point.choice) for layer in layers for point in layer.points}
    marks = [
        Line2D([], [], color=color, marker="o", linestyle="", label=label)
        for form, (color, label) in _FORMS.items()
        if form in seen
    ]
    marks.append(Line2D([], [], color=DENSE, label="dense"))
    figure.legend(
        handles=marks, loc="outside upper center", ncols=len(marks), frameon=False, fontsize=8, labelcolor=INK
    )


def _form(choice: Choice) -> str:
    return f"{choice.form} up" if getattr(choice, "kernel_on", "down") == "up" else choice.form


def _rank(choice: Choice) -> float:
    """A form's rank; of Tucker-2's two, the geometric mean."""
    if choice.form == "tucker2":
        return (choice.rank_in * choice.rank_out) ** 0.5
    return choice.rank
