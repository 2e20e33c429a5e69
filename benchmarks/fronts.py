"""What the rows of `rank_choice.py` say: means over seeds, a table, the speed at an accuracy, and a picture. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, geometric_mean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WITHIN_POINTS = 0.3
_FAMILIES = {  # by kind and the name's first word, in the order of the legend
    "dense": ("dense", "#7a7f87", "s"),
    "INT8": ("dense, INT8", "#9a6fd0", "D"),
    "uniform": ("uniform", "#2b8bd9", "o"),
    "weighted": ("uniform, weighted by the inputs", "#3aa6a0", "h"),
    "latency": ("measured latency", "#d9542b", "^"),
    "policy": ("other policies", "#e8a33d", "v"),
    "AIMET": ("AIMET weight SVD", "#2f9e62", "P"),
    "Torch-Pruning": ("Torch-Pruning", "#b0488f", "X"),
}

Line = dict[str, Any]


@dataclass(frozen=True)
class FrontPoint:
    """One row, averaged over seeds. `speedup` (low, high) encloses every seed's interval; shares are of dense.

    `drop_points` is the reference's accuracy less the row's, in percentage points, seed by seed; see `reference_row`.
    """

    row: str
    ranks: str
    accuracy: float
    spread: tuple[float, float]
    drop_points: float
    speedup: float
    low: float
    high: float
    macs: float
    parameters: float
    seeds: int

    @property
    def efficiency(self) -> float:
        """Speedup × share of MACs: 1 where time falls exactly as MACs."""
        return self.speedup * self.macs

    @property
    def family(self) -> str:
        """What kind of method the row is."""
        first = self.row.replace(",", " ").split()[0]
        if self.row == "dense INT8":
            return "INT8"
        if first in {"formula", "alpha"}:
            return "weighted" if self.row.endswith(", weighted") else "uniform"
        return first if first in _FAMILIES else "policy"


@dataclass(frozen=True)
class Front:
    """A model's rows, the row that accuracy is judged by, and the refusals by row."""

    model: str
    points: tuple[FrontPoint, ...]
    reference: str
    refusals: dict[str, str]

    @property
    def dense(self) -> float:
        """The mean accuracy of the reference row."""
        return next(point.accuracy for point in self.points if point.row == self.reference)

    def family(self, *names: str) -> list[FrontPoint]:
        """The points of these families."""
        return [point for point in self.points if point.family in names]


def read(path: Path) -> list[Line]:
    """Returns the JSON lines of a file; a last line that a killed run left half written is dropped."""
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def front(lines: Sequence[Line], model: str, order: Sequence[str] = ()) -> Front:
    """Averages a model's rows over seeds, in this order; of lines with different budgets only the last line's counts.

    Rows that the order does not name come last, as they were computed.
    """
    own = [line for line in lines if line["model"] == model]
    own = [line for line in own if line["budget"] == own[-1]["budget"]]
    reference = reference_row(own)
    dense = {line["seed"]: line["accuracy"] for line in own if line["row"] == reference}
    by_row: dict[str, list[Line]] = {row: [] for row in order}
    for line in own:
        by_row.setdefault(line["row"], []).append(line)
    finished = {row: [line for line in found if "accuracy" in line] for row, found in by_row.items()}
    refused = {row: [line["refusal"] for line in found if "refusal" in line] for row, found in by_row.items()}
    refusals = {row: found[-1] for row, found in refused.items() if found}
    points = tuple(_point(row, found, dense) for row, found in finished.items() if found)
    return Front(model, points, reference, refusals)


def reference_row(lines: Sequence[Line]) -> str:
    """Returns the dense row to judge by: the one that had the compressed models' epochs too, where it was computed."""
    finished = {line["row"] for line in lines if "accuracy" in line}
    return "dense, fine-tuned" if "dense, fine-tuned" in finished else "dense"


def speed_at_accuracy(points: Sequence[FrontPoint], accuracy: float) -> FrontPoint | None:
    """Returns the fastest row whose mean accuracy is above `accuracy`, or within 0.3 points of it; None without one.

    A row that some seed was refused does not count.
    """
    seeds = max((point.seeds for point in points), default=0)
    least = accuracy - WITHIN_POINTS / 100 - 1e-9
    good = [point for point in points if point.seeds == seeds and point.accuracy >= least]
    return max(good, key=lambda point: point.speedup, default=None)


def table(found: Front) -> str:
    """The rows as Markdown, refusals at the end."""
    lines = [
        "| row | ranks | accuracy (lowest to highest seed) | under dense, points | speedup | MACs | parameters "
        "| speedup × MACs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    seeds = max(p.seeds for p in found.points)
    for p in found.points:
        row = p.row if p.seeds == seeds else f"{p.row} ({p.seeds} of {seeds} seeds)"
        accuracy = f"{p.accuracy:.2%} ({p.spread[0]:.1%} to {p.spread[1]:.1%})"
        speedup = f"{p.speedup:.2f}× ({p.low:.2f} to {p.high:.2f})"
        cells = (row, p.ranks, accuracy, f"{p.drop_points:+.2f}", speedup, f"{p.macs:.1%}", f"{p.parameters:.1%}")
        lines.append(f"| {' | '.join(cells)} | {p.efficiency:.2f} |")
    lines += [f"| {row} | refused: {' '.join(reason.split())} | | | | | | |" for row, reason in found.refusals.items()]
    return "\n".join(lines)


def summary(found: Front) -> str:
    """The fastest row of each kind at dense accuracy, and one and two points below it."""
    kinds = {
        "measured latency": found.family("latency"),
        "other policies": found.family("policy"),
        "uniform": found.family("uniform"),
        "uniform, weighted": found.family("weighted"),
        "peers": found.family("AIMET", "Torch-Pruning"),
        "dense INT8": found.family("INT8"),
    }
    kinds = {name: points for name, points in kinds.items() if points}
    lines = [f"| accuracy at least | {' | '.join(kinds)} |", f"|---|{'---|' * len(kinds)}"]
    for below in (0.0, 1.0, 2.0):
        wanted = found.dense - below / 100
        cells = [_told(speed_at_accuracy(points, wanted)) for points in kinds.values()]
        asked = f"{wanted:.2%} ({found.reference} − {below:g}), within {WITHIN_POINTS} points"
        lines.append(f"| {asked} | {' | '.join(cells)} |")
    return "\n".join(lines)


def one_line(line: Line) -> str:
    """A finished row in a few words, for the console."""
    if "refusal" in line:
        return f"{line['row']}: refused: {line['refusal'][:200]}"
    speedup = line["latency"]["speedup"]["estimate"]
    share = line["macs"] / line["dense_macs"]
    return f"{line['row']}: {line['accuracy']:.2%}, {speedup:.2f}×, MACs {share:.1%}, {line['seconds']:.0f} s"


def plot(found: Front, path: Path) -> Path:
    """Draws accuracy against speedup, one colour per kind of method, and returns the file."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "rank-choice"  # the same picture has the same bytes
    ink = _FAMILIES["dense"][1]
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for family, (label, color, marker) in _FAMILIES.items():
        points = sorted(found.family(family), key=lambda point: point.speedup)
        if points:
            speeds, accuracies = ([p.speedup for p in points], [100 * p.accuracy for p in points])
            bars = [[p.speedup - p.low for p in points], [p.high - p.speedup for p in points]]
            axes.errorbar(speeds, accuracies, xerr=bars, fmt="none", color=color, linewidth=0.8, alpha=0.6)
            axes.plot(speeds, accuracies, marker, color=color, markersize=6, label=label)
            axes.step(*_staircase(points), where="pre", color=color, linewidth=1, alpha=0.7)
    axes.axhline(100 * found.dense, color=ink, linestyle=":", linewidth=1)
    _stretch_the_top(axes, [100 * point.accuracy for point in found.points])
    axes.set_xlabel("measured speedup against dense, same machine and process")
    axes.set_ylabel("test accuracy, %, mean over seeds")
    axes.set_title(found.model, color=ink, fontsize=10)
    axes.tick_params(colors=ink)
    axes.xaxis.label.set_color(ink)
    axes.yaxis.label.set_color(ink)
    for side in axes.spines.values():
        side.set_color(ink)
    axes.legend(frameon=False, labelcolor=ink, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", transparent=True, metadata={"Date": None})
    return path


def _stretch_the_top(axes: Axes, accuracies: Sequence[float]) -> None:
    """Spreads the y axis logarithmically below the best accuracy (%): a tenth of a point counts there, not far below.

    Ticks are whole percents, a few points apart at the top and ever more below.
    """
    import numpy as np

    best, worst = max(accuracies), min(accuracies)
    top = best + 0.5
    axes.set_yscale(
        "function",
        functions=(lambda y: -np.log1p(np.maximum(top - y, -0.9)), lambda z: top - np.expm1(-z)),
    )
    axes.set_ylim(worst - 0.15 * (top - worst + 1), top)
    whole = math.floor(best)
    ticks = [whole - below for below in (0, 1, 2, 4, 8, 16, 32, 64) if whole - below > axes.get_ylim()[0]]
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()


def _point(row: str, lines: Sequence[Line], dense: dict[int, float]) -> FrontPoint:
    accuracies = [line["accuracy"] for line in lines]
    speedups = [line["latency"]["speedup"] for line in lines]
    drops = [100 * (dense[line["seed"]] - line["accuracy"]) for line in lines if line["seed"] in dense]
    return FrontPoint(
        row=row,
        ranks=_ranks_told(lines[0].get("ranks", [])),
        accuracy=fmean(accuracies),
        spread=(min(accuracies), max(accuracies)),
        drop_points=fmean(drops) if drops else 0.0,
        speedup=geometric_mean([speedup["estimate"] for speedup in speedups]),
        low=min(speedup["low"] for speedup in speedups),
        high=max(speedup["high"] for speedup in speedups),
        macs=fmean([line["macs"] / line["dense_macs"] for line in lines]),
        parameters=fmean([line["parameters"] / line["dense_parameters"] for line in lines]),
        seeds=len(lines),
    )


def _ranks_told(ranks: Sequence[str]) -> str:
    """How many layers took which form, and the range of their ranks."""
    forms: dict[str, list[list[int]]] = {}
    for choice in ranks:
        words = choice.replace(",", "").split()
        form = " ".join(word for word in words if not word.isdigit())
        forms.setdefault(form, []).append([int(word) for word in words if word.isdigit()])
    told = []
    for form, layers in forms.items():
        numbers = [rank for layer in layers for rank in layer]
        told.append(f"{len(layers)} {form}" + (f" {min(numbers)}–{max(numbers)}" if numbers else ""))
    return ", ".join(told)


def _staircase(points: Sequence[FrontPoint]) -> tuple[list[float], list[float]]:
    """The front proper: from slow to fast, the best accuracy that is at least as fast."""
    best, steps = 0.0, []
    for point in sorted(points, key=lambda point: -point.speedup):
        if point.accuracy > best:
            best = point.accuracy
            steps.append((point.speedup, 100 * point.accuracy))
    steps.reverse()
    return [speed for speed, _ in steps], [accuracy for _, accuracy in steps]


def _told(point: FrontPoint | None) -> str:
    return f"{point.speedup:.2f}× ({point.row}, {point.accuracy:.2%})" if point else "none"
