"""The figures of a run's page: how sure the speedup is, how training went, what each layer takes."""

from __future__ import annotations

from typing import Any

from lrd_deploy.records import Comparison, KeepDense, PlannedLayer, RankPlan, Ratio, TrainedModel
from lrd_deploy.report.canvas import (
    AMBER,
    BLUE,
    DENSE,
    INK,
    LOWRANK,
    Plot,
    Sheet,
    add_legend,
    literal,
    new_axes,
    on_both_sheets,
)

_SHADE = {"A": BLUE, "B": AMBER}
_LONGEST, _LONGEST_NARROW = 44, 52
_MOST_NAMED_PHASES = 20
_LAYERS_PER_PLOT = 36


def launch_ratios(comparison: Comparison) -> Plot:
    """The speedup of each launch with the interval of all, and the control beside it."""
    ratios, interval, control = comparison.per_launch_speedup, comparison.speedup, comparison.control

    def draw(sheet: Sheet) -> Any:
        figure, axes = new_axes(sheet, height=2.2 if sheet.is_narrow else 1.9)
        axes.axvline(1.0, color=INK, linestyle=":", linewidth=1)
        spread = [0.16 * (number % 3 - 1) for number in range(len(ratios))]
        axes.plot(ratios, [1 + step for step in spread], "o", color=LOWRANK, markersize=4, alpha=0.55, gid="launches")
        _interval(axes, interval, 1.45, LOWRANK, f"{interval.estimate:.2f}×", sheet)
        _interval(axes, control, 0.0, DENSE, f"{control.estimate:.3f}×", sheet)
        axes.set_ylim(-0.5, 1.9)
        names = ("control:\ndense again", "low-rank") if sheet.is_narrow else ("dense again, the control", "low-rank")
        axes.set_yticks([0, 1], names)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlim(left=min(0.95, control.low, *ratios), right=1.12 * max(1.05, interval.high, *ratios))
        axes.set_xlabel("speedup over dense")
        return figure

    label = (
        f"Speedup of each launch: {', '.join(f'{value:.2f}' for value in ratios)}; "
        f"interval {interval.low:.2f} to {interval.high:.2f}. The dense model beside itself: {control.estimate:.3f}, "
        f"interval {control.low:.3f} to {control.high:.3f}."
    )
    titles = [f"launch {number}: {value:.3f}×" for number, value in enumerate(ratios, 1)]
    return on_both_sheets("launches", label, draw, {"launches": titles})


def training_curves(dense: TrainedModel, lowrank: TrainedModel) -> Plot:
    """Test accuracy and training loss over time, with every epoch shaded by the group that stood still."""
    arms = [arm for arm in (("dense", dense, DENSE, "s"), ("low-rank", lowrank, LOWRANK, "o")) if arm[1].epochs]

    def draw(sheet: Sheet) -> Any:
        figure, plots = new_axes(sheet, height=4.4, rows=2)
        for name, trained, color, marker in arms:
            style = {"color": color, "marker": marker, "markersize": 3.5, "label": name}
            for plot, values, what in zip(plots.flat, _histories(trained), ("accuracy", "loss"), strict=True):
                plot.plot(_ends(trained), values, gid=f"{name} {what}", **style)
        for plot in plots.flat:
            _shade_phases(plot, lowrank, sheet.text)
        plots.flat[0].set_ylabel("test accuracy, %")
        plots.flat[1].set_ylabel("training loss")
        plots.flat[1].set_xlabel("seconds of training")
        plots.flat[1].set_ylim(bottom=0)
        add_legend(figure, sheet)
        return figure

    titles = {
        f"{name} {what}": [
            f"{name}, epoch {epoch.epoch}: {epoch.accuracy:.2%}, loss {epoch.loss:.3f}" for epoch in trained.epochs
        ]
        for name, trained, _, _ in arms
        for what in ("accuracy", "loss")
    }
    ends = "; ".join(
        f"{name} {trained.epochs[-1].accuracy:.2%} after {_ends(trained)[-1]:.0f} s" for name, trained, _, _ in arms
    )
    return on_both_sheets("training", f"Test accuracy and loss over seconds of training: {ends}.", draw, titles)


def layer_latencies(plan: RankPlan) -> list[Plot]:
    """Dense latency against the chosen form's, layer by layer, in plots of one scale that fit a printed page each."""
    timed = [layer for layer in plan.layers if layer.dense_latency_ms is not None]
    longest = max((layer.dense_latency_ms for layer in timed), default=0.0)
    starts = range(0, len(timed), _LAYERS_PER_PLOT)
    return [_layer_plot(start, timed[start : start + _LAYERS_PER_PLOT], longest) for start in starts]


def _layer_plot(start: int, layers: list[PlannedLayer], longest_ms: float) -> Plot:
    titles = {f"layer{number}": [_layer_title(layer)] for number, layer in enumerate(layers)}

    def draw(sheet: Sheet) -> Any:
        figure, axes = new_axes(sheet, height=1.0 + (0.36 if sheet.is_narrow else 0.24) * len(layers))
        size = 0.42 if sheet.is_narrow else 0.74
        dense = [layer.dense_latency_ms for layer in layers]
        outlined = {"facecolor": f"{DENSE}40", "edgecolor": DENSE, "linewidth": 0.7}
        bars = axes.barh(range(len(layers)), dense, height=size, label="dense", **outlined)
        for number, bar in enumerate(bars):
            bar.set_gid(f"layer{number}")
        lowrank = [(row, layer.predicted_latency_ms) for row, layer in enumerate(layers) if faster(layer)]
        if lowrank:
            axes.barh(*zip(*lowrank, strict=True), color=LOWRANK, height=size / 2, label="low-rank as chosen")
        _name_rows(axes, layers, sheet)
        axes.set_ylim(len(layers) - 0.5, -0.9)
        axes.set_xlim(0, 1.16 * longest_ms)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("ms")
        add_legend(figure, sheet)
        return figure

    label = f"Latency of {len(layers)} layers, dense and as chosen; the table of layers has the numbers."
    return on_both_sheets(f"layers{start}", label, draw, titles)


def _interval(axes: Any, ratio: Ratio, height: float, color: str, text: str, sheet: Sheet) -> None:
    axes.plot([ratio.low, ratio.high], [height, height], color=color, linewidth=3, solid_capstyle="butt")
    axes.plot(ratio.estimate, height, "D", color=color, markersize=5)
    axes.annotate(
        text, (ratio.high, height), (8, 0), textcoords="offset points", va="center", color=color,
        size=sheet.text + 1, weight="bold",
    )  # fmt: skip


def _shade_phases(plot: Any, lowrank: TrainedModel, size: float) -> None:
    """Tints each phase by the group that stood still, and names the group at its top where there is room."""
    phases = _phases(lowrank)
    for started, ended, group in phases:
        plot.axvspan(started, ended, color=_SHADE[group], alpha=0.16, linewidth=0, label=f"low-rank, {group} frozen")
        if len(phases) <= _MOST_NAMED_PHASES:
            plot.text(
                (started + ended) / 2, 1.01, group, transform=plot.get_xaxis_transform(), ha="center", va="bottom",
                size=size, color=_SHADE[group],
            )  # fmt: skip


def _phases(lowrank: TrainedModel) -> list[tuple[float, float, str]]:
    """(start, end, group) in seconds; epochs in which groups changed are none: they would be stripes."""
    found: list[tuple[float, float, str]] = []
    started = 0.0
    for epoch in lowrank.epochs:
        ended, groups = started + epoch.seconds, tuple(epoch.frozen)
        if len(groups) == 1 and groups[0] != "none":
            follows = found and found[-1][1:] == (started, groups[0])
            found.append((found.pop()[0] if follows else started, ended, groups[0]))
        started = ended
    return found


def _name_rows(axes: Any, layers: list[PlannedLayer], sheet: Sheet) -> None:
    """Names beside the bars, or above them where there is no room; at a bar's end how much faster the choice is."""
    names = [_name_with_choice(layer, sheet) for layer in layers]
    if sheet.is_narrow:
        axes.set_yticks([])
        for row, name in enumerate(names):
            axes.annotate(
                name,
                (0, row),
                (2, 8),
                textcoords="offset points",
                va="bottom",
                size=sheet.text - 0.5,
                color=INK,
                annotation_clip=False,
            )
    else:
        axes.set_yticks(range(len(names)), names)
    for row, layer in enumerate(layers):
        axes.annotate(
            faster(layer) or "dense", (layer.dense_latency_ms, row), (4, 0), textcoords="offset points", va="center",
            size=sheet.text - 0.5, color=INK,
        )  # fmt: skip


def _name_with_choice(layer: PlannedLayer, sheet: Sheet) -> str:
    choice = "" if isinstance(layer.choice, KeepDense) else f"  {layer.choice}"
    room = _LONGEST_NARROW - len(choice) if sheet.is_narrow else _LONGEST
    return literal(short_name(layer.name, room) + choice)


def faster(layer: PlannedLayer) -> str:
    """Returns "2.3×", or "" for a layer that stays dense or was not timed."""
    if isinstance(layer.choice, KeepDense) or not layer.dense_latency_ms or not layer.predicted_latency_ms:
        return ""
    return f"{layer.dense_latency_ms / layer.predicted_latency_ms:.1f}×"


def short_name(name: str, longest: int = _LONGEST) -> str:
    """Returns the end of a dotted name, cut at a dot where there is one."""
    if len(name) <= longest:
        return name
    end = name[-longest:]
    return "…" + (end.partition(".")[2] or end)


def _layer_title(layer: PlannedLayer) -> str:
    chosen = f", {layer.choice} {layer.predicted_latency_ms:.3g} ms" if faster(layer) else ", stays dense"
    return f"{layer.name}: dense {layer.dense_latency_ms:.3g} ms{chosen}"


def _ends(trained: TrainedModel) -> list[float]:
    """Seconds of training at the end of each epoch."""
    seconds, total = [], 0.0
    for epoch in trained.epochs:
        total += epoch.seconds
        seconds.append(total)
    return seconds


def _histories(trained: TrainedModel) -> tuple[list[float], list[float]]:
    return [100 * epoch.accuracy for epoch in trained.epochs], [epoch.loss for epoch in trained.epochs]
