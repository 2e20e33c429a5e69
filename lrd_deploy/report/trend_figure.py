"""A baseline's history as a picture: each promotion's change, the drift of all, and milliseconds as information."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from math import ceil
from typing import Any

from lrd_deploy.records import Promotion
from lrd_deploy.report.canvas import BLUE, DENSE, INK, LOWRANK, WIDE, as_file, new_axes
from lrd_deploy.report.ci.legible import legible
from lrd_deploy.report.trend import Point, change_bounds, trend_points

_MOST_DATES = 9
_MARKS = {
    "PASS": {"marker": "o", "label": "passed"},
    "FAIL": {"marker": "X", "label": "regression, accepted"},
    "INCONCLUSIVE": {"marker": "o", "fillstyle": "none", "label": "inconclusive"},
    None: {"marker": "D", "fillstyle": "none", "label": "not gated"},
}

_ARMS = {
    "base_ms": {
        "color": DENSE,
        "marker": "o",
        "markersize": 5,
        "fillstyle": "none",
        "linestyle": "",
        "label": "before",
    },
    "candidate_ms": {"color": LOWRANK, "marker": "o", "markersize": 4, "label": "after"},
}


def trend(promotions: Sequence[Promotion]) -> str:
    """Returns the history as SVG; empty where there is none. Lines break where the machine changes."""
    points = trend_points(promotions)
    if not points:
        return ""
    figure, plots = new_axes(WIDE, height=6.0, rows=3)
    changes, drifts, times = plots.flat
    _draw_changes(changes, points)
    _draw_drift(drifts, points)
    _draw_times(times, points)
    _name_machines(times, points)
    for plot in plots.flat:
        _mark_machines(plot, points)
        plot.set_xlim(-0.5, len(points) - 0.5)
        plot.set_xticks([])
    _write_dates(times, points)
    return as_file(figure)


def _draw_changes(plot: Any, points: Sequence[Point]) -> None:
    plot.axhline(0.0, color=INK, linestyle=":")
    for number, point in enumerate(points):
        promotion = point.promotion
        if promotion.change is None:
            continue
        low, high = change_bounds(promotion)
        reach = [[100 * max(promotion.change - low, 0.0)], [100 * max(high - promotion.change, 0.0)]]
        style = _MARKS[promotion.verdict] | {"label": None}
        plot.errorbar([number], [100 * promotion.change], reach, color=LOWRANK, markersize=5, capsize=2, **style)
    for verdict in dict.fromkeys(point.promotion.verdict for point in points if point.promotion.change is not None):
        plot.plot([], [], color=LOWRANK, linestyle="", markersize=5, **_MARKS[verdict])
    plot.set_ylabel("change, %")
    _widen(plot)
    _write_title(plot, "each promotion against the baseline before it; above 0 is slower")


def _draw_drift(plot: Any, points: Sequence[Point]) -> None:
    plot.axhline(0.0, color=INK, linestyle=":")
    for numbers, stretch in _stretches(points):
        low, middle, high = (
            [100 * getattr(point.drift, field) for point in stretch] for field in ("low", "change", "high")
        )
        plot.fill_between(numbers, low, high, color=BLUE, alpha=0.2, linewidth=0)
        plot.plot(numbers, middle, color=BLUE, marker="o", markersize=4)
    plot.set_ylabel("drift, %")
    _widen(plot)
    _write_title(plot, "all changes multiplied, since the first promotion or the last that was not gated")


def _draw_times(plot: Any, points: Sequence[Point]) -> None:
    for numbers, stretch in _stretches(points):
        for arm, style in _ARMS.items():
            known = [(n, getattr(point.promotion, arm)) for n, point in zip(numbers, stretch, strict=True)]
            known = [(n, value) for n, value in known if value is not None]
            if known:
                plot.plot(*zip(*known, strict=True), **style | {"label": None})
    for style in _ARMS.values():
        plot.plot([], [], **style)
    known = [value for point in points for arm in _ARMS if (value := getattr(point.promotion, arm)) is not None]
    plot.set_ylim(0, 1.15 * max(known, default=1.0))
    plot.set_ylabel("p50, ms")
    _write_title(plot, "milliseconds, for information: another machine or day gives others")


def _widen(plot: Any) -> None:
    """At least a percent either way: what is less than that is noise, and must not fill the picture."""
    low, high = plot.get_ylim()
    plot.set_ylim(min(low, -1.0), max(high, 1.0))


def _write_title(plot: Any, text: str) -> None:
    """The title on the left above the plot, and the legend on the right of it."""
    plot.set_title(text, loc="left", color=INK, fontsize=8)
    if plot.get_legend_handles_labels()[0]:
        plot.legend(
            loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(_MARKS), frameon=False, fontsize=8,
            labelcolor=INK, borderaxespad=0.0,
        )  # fmt: skip


def _stretches(points: Sequence[Point]) -> list[tuple[list[int], list[Point]]]:
    """Runs of promotions that a line may join, with their numbers."""
    runs = [list(run) for _, run in groupby(enumerate(points), key=lambda numbered: numbered[1].segment)]
    return [([number for number, _ in run], [point for _, point in run]) for run in runs]


def _mark_machines(plot: Any, points: Sequence[Point]) -> None:
    for border in _borders(points):
        plot.axvline(border, color=INK, linestyle="--", linewidth=1)


def _name_machines(plot: Any, points: Sequence[Point]) -> None:
    """Says once, at the first border, what a dashed line is."""
    for border in _borders(points)[:1]:
        plot.annotate(
            "other machine", (border, 0), xycoords=("data", "axes fraction"), xytext=(3, 3),
            textcoords="offset points", fontsize=7, color=INK,
        )  # fmt: skip


def _borders(points: Sequence[Point]) -> list[float]:
    """Where the fingerprint changes, half-way between two promotions."""
    machines = [point.promotion.fingerprint for point in points]
    return [number - 0.5 for number in range(1, len(machines)) if machines[number] != machines[number - 1]]


def _write_dates(plot: Any, points: Sequence[Point]) -> None:
    step = ceil(len(points) / _MOST_DATES)
    shown = range(0, len(points), step)
    labels = [f"{_day(points[number])}\n{legible(points[number].promotion.model_sha256)[:7]}" for number in shown]
    plot.set_xticks(list(shown), [label.replace("$", r"\$") for label in labels])


def _day(point: Point) -> str:
    return legible(point.promotion.promoted_at)[:10]
