"""A plan as pictures: every layer's staircase with the chosen point, and the front of error against latency."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

from lrd_deploy.records import Choice, KeepDense, LayerStudy, RankPlan, RankPoint, RankStudy
from lrd_deploy.report.canvas import (
    AMBER,
    BLUE,
    DENSE,
    GREEN,
    INK,
    LOWRANK,
    NARROW,
    PALETTE,
    VIOLET,
    WIDE,
    Plot,
    Sheet,
    add_legend,
    as_file,
    literal,
    new_axes,
    on_both_sheets,
    on_narrow_sheet,
)

_MOST_LAYERS = 30
_FORMS = {
    "svd": (BLUE, "o", "svd"),
    "channel_svd": (BLUE, "o", "channel svd"),
    "channel_svd up": (VIOLET, "s", "channel svd, kernel last"),
    "spatial_svd": (GREEN, "^", "spatial svd"),
    "tucker2": (AMBER, "D", "tucker2"),
}


def staircases(study: RankStudy) -> str:
    """Returns a file's picture: for each distinct layer, latency against rank for every choice that no other beats.

    Filled marks were timed, hollow ones predicted from those; the line is dense, the ring the choice.
    """
    shown = distinct_layers(study)
    rows = max(ceil(len(shown) / WIDE.columns), 1)
    figure, plots = new_axes(WIDE, height=2.1 * rows + 0.5, rows=rows, columns=WIDE.columns)
    for plot, layer in zip(plots.flat, shown, strict=False):
        _staircase(plot, layer)
        plot.set_title(literal(str(layer.signature)), fontsize=7, color=INK)
    for plot in list(plots.flat)[len(shown) :]:
        plot.set_visible(False)
    add_legend(figure, WIDE, _marks_of_forms(shown), columns=6)
    return as_file(figure)


def pareto_front(study: RankStudy, plan: RankPlan) -> str:
    """Returns a file's picture of predicted error against speedup: the front, the plan, other policies."""
    return as_file(_front(study, plan, WIDE))


def front_plot(study: RankStudy, plan: RankPlan) -> Plot:
    """Returns the same for a page."""
    chosen = _chosen_point(study, plan)
    here = f" This plan: {chosen[0]:.2f}×, error {chosen[1]:.3f}." if chosen else ""
    points = "; ".join(
        f"{point.policy} {point.speedup:.2f}×, error {point.predicted_error:.3f}" for point in _others(study)
    )
    label = f"Predicted error against predicted speedup.{here}{f' Others: {points}.' if points else ''}"
    front = [f"{speedup:.2f}×, error {error:.3f}" for speedup, error in _latency_front(study)]
    return on_both_sheets("front", label, lambda sheet: _front(study, plan, sheet), {"front": front})


def staircase_plots(study: RankStudy) -> list[tuple[LayerStudy, Plot]]:
    """Returns one small plot for each distinct layer, the slowest first; they share the legend of `form_marks`."""
    return [(layer, _staircase_plot(number, layer)) for number, layer in enumerate(distinct_layers(study))]


def form_marks(study: RankStudy) -> list[tuple[str, str, str]]:
    """Returns (colour name, mark, form) for the forms that a study's staircases hold."""
    names = {color: name for name, color in PALETTE.items()}
    shapes = {"o": "●", "s": "■", "^": "▲", "D": "◆"}
    seen = _forms_in(distinct_layers(study))
    return [(names[color], shapes[mark], label) for form, (color, mark, label) in _FORMS.items() if form in seen]


def distinct_layers(study: RankStudy) -> list[LayerStudy]:
    """Returns the layers that a staircase is drawn for: one per signature, the slowest first, at most 30."""
    distinct = {layer.signature: layer for layer in study.layers}
    return sorted(distinct.values(), key=lambda layer: -layer.dense_latency_ms)[:_MOST_LAYERS]


def _front(study: RankStudy, plan: RankPlan, sheet: Sheet) -> Any:
    figure, plot = new_axes(sheet, height=3.6 if sheet.is_narrow else 3.4)
    front = _latency_front(study)
    plot.plot(*zip(*front, strict=True), color=LOWRANK, marker="o", markersize=3.5, label="the front", gid="front")
    for point, marker in zip(_others(study), "sD^vP*X", strict=False):
        plot.plot(point.speedup, point.predicted_error, marker, color=DENSE, label=literal(point.policy))
    chosen = _chosen_point(study, plan)
    if chosen:
        plot.plot(
            *chosen, "o", color=LOWRANK, markersize=11, fillstyle="none", markeredgewidth=2, label="this plan",
        )  # fmt: skip
    plot.axvline(1.0, color=INK, linestyle=":", linewidth=1)
    plot.set_xlabel("predicted speedup of the layers together")
    plot.set_ylabel("predicted relative error")
    plot.set_ylim(bottom=0)
    add_legend(figure, sheet, columns=6)
    return figure


def _latency_front(study: RankStudy) -> list[tuple[float, float]]:
    return sorted((point.speedup, point.predicted_error) for point in study.front if point.policy == "latency")


def _others(study: RankStudy) -> list[Any]:
    return [point for point in study.front if point.policy != "latency"]


def _chosen_point(study: RankStudy, plan: RankPlan) -> tuple[float, float] | None:
    latencies = [layer.predicted_latency_ms for layer in plan.layers if layer.predicted_latency_ms is not None]
    dense = [layer.dense_latency_ms for layer in plan.layers if layer.dense_latency_ms is not None]
    if not study.layers or not latencies or plan.predicted_error is None:
        return None
    return sum(dense) / sum(latencies), plan.predicted_error


def _staircase_plot(number: int, layer: LayerStudy) -> Plot:
    choice = "stays dense" if isinstance(layer.chosen, KeepDense) else f"{layer.chosen} chosen"
    label = f"Latency over rank of {layer.signature}: dense {layer.dense_latency_ms:.3g} ms, {choice}"
    titles = {f"{form} {timed}": [_point_title(point) for point in points] for form, timed, points in _series(layer)}
    figure, plot = new_axes(NARROW, height=2.3)
    _staircase(plot, layer)
    return on_narrow_sheet(f"stairs{number}", label, figure, titles)


def _staircase(plot: Any, layer: LayerStudy) -> None:
    for form, timed, points in _series(layer):
        color, marker, _ = _FORMS[form]
        marks = [(_rank(point.choice), point.latency_ms) for point in points]
        plot.plot(
            *zip(*marks, strict=True), marker, color=color, markersize=3.5, gid=f"{form} {timed}",
            fillstyle="full" if timed else "none",
        )  # fmt: skip
    plot.axhline(layer.dense_latency_ms, color=DENSE, linewidth=1.2)
    for point in layer.points:
        if point.choice == layer.chosen:
            plot.plot(
                _rank(point.choice), point.latency_ms, "o", color=LOWRANK, markersize=9, fillstyle="none",
                markeredgewidth=2,
            )  # fmt: skip
    plot.set_xlim(0, 1.08 * max((_rank(point.choice) for point in layer.points), default=1.0))
    plot.set_ylim(0, 1.08 * max([layer.dense_latency_ms, *(point.latency_ms for point in layer.points)]))
    plot.set_ylabel("ms")
    plot.set_xlabel(_rank_label(layer))
    if not layer.points:
        plot.set_xticks([])


def _rank_label(layer: LayerStudy) -> str:
    if not layer.points:
        return "no rank came into question"
    return "rank; stays dense" if isinstance(layer.chosen, KeepDense) else f"rank; chosen: {layer.chosen}"


def _series(layer: LayerStudy) -> list[tuple[str, bool, list[RankPoint]]]:
    """The points by form and by whether they were timed, in the order of their rank."""
    found = []
    for form in _FORMS:
        points = sorted(
            (p for p in layer.points if _form(p.choice) == form), key=lambda p: (_rank(p.choice), p.latency_ms)
        )
        for timed in (True, False):
            chosen = [point for point in points if point.timed == timed]
            if chosen:
                found.append((form, timed, chosen))
    return found


def _point_title(point: RankPoint) -> str:
    how = "" if point.timed else " predicted"
    return f"{point.choice}: {point.latency_ms:.3g} ms{how}, error {point.relative_error:.3f}"


def _marks_of_forms(layers: Sequence[LayerStudy]) -> list[Any]:
    from matplotlib.lines import Line2D

    seen = _forms_in(layers)
    marks = [
        Line2D([], [], color=color, marker=marker, linestyle="", label=label)
        for form, (color, marker, label) in _FORMS.items()
        if form in seen
    ]
    return [*marks, Line2D([], [], color=DENSE, label="dense")]


def _forms_in(layers: Sequence[LayerStudy]) -> set[str]:
    return {_form(point.choice) for layer in layers for point in layer.points}


def _form(choice: Choice) -> str:
    return f"{choice.form} up" if getattr(choice, "kernel_on", "down") == "up" else choice.form


def _rank(choice: Choice) -> float:
    """A form's rank; of Tucker-2's two, the geometric mean."""
    if choice.form == "tucker2":
        return (choice.rank_in * choice.rank_out) ** 0.5
    return choice.rank
