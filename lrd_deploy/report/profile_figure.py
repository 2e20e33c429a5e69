"""A profile as a picture: every layer of both models side by side, and what is in no layer below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from lrd_deploy.records import ModelProfile, ProfiledLayer
from lrd_deploy.report.canvas import AMBER, BAD, BLUE, DENSE, INK, WIDE, add_legend, as_file, literal, new_axes
from lrd_deploy.report.figures import short_name
from lrd_deploy.report.profile_wording import NO_LAYER

_MOST_ROWS = 160
_HEIGHT = 0.74
_OUTLINED = {"facecolor": f"{DENSE}40", "edgecolor": DENSE, "linewidth": 0.7}


class _Bar(NamedTuple):
    """A row of the picture: the base's time, and the candidate's by what it is spent on."""

    name: str
    base_ms: float
    parts: tuple[tuple[str, str, float], ...]  # what, colour, milliseconds
    note: str


def profile_picture(profile: ModelProfile) -> str:
    """Returns a profile as SVG, the longest 160 layers in the graph's order.

    The candidate's bars are red where its factors lose; layout reorders between factors stand apart.
    """
    bars = [*(_bar(layer) for layer in _longest(profile.layers)), *_outside(profile)]
    figure, axes = new_axes(WIDE, height=1.2 + 0.24 * len(bars))
    axes.barh(range(len(bars)), [bar.base_ms for bar in bars], height=_HEIGHT, label=_base_label(profile), **_OUTLINED)
    told: set[str] = set()
    for row, bar in enumerate(bars):
        start = 0.0
        for what, color, ms in bar.parts:
            axes.barh(row, ms, left=start, height=_HEIGHT / 2, color=color, label=None if what in told else what)
            told.add(what)
            start += ms
        if bar.note:
            axes.annotate(
                bar.note, (max(start, bar.base_ms), row), (4, 0), textcoords="offset points", va="center",
                fontsize=WIDE.text, color=BAD if start > bar.base_ms else INK,
            )  # fmt: skip
    axes.set_yticks(range(len(bars)), [literal(short_name(bar.name)) for bar in bars])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(bars) - 0.5, -0.9)
    axes.set_xlim(0, 1.16 * max((max(bar.base_ms, sum(part[2] for part in bar.parts)) for bar in bars), default=1.0))
    axes.axhline(len(bars) - len(NO_LAYER) - 0.5, color=INK, linewidth=0.6)
    axes.set_xlabel("ms of a call")
    add_legend(figure, WIDE)
    return as_file(figure)


def _base_label(profile: ModelProfile) -> str:
    return "base" if profile.candidate is not None else "time"


def _longest(layers: Sequence[ProfiledLayer]) -> list[ProfiledLayer]:
    if len(layers) <= _MOST_ROWS:
        return list(layers)
    limit = sorted((_longer_ms(layer) for layer in layers), reverse=True)[_MOST_ROWS - 1]
    return [layer for layer in layers if _longer_ms(layer) >= limit][:_MOST_ROWS]


def _longer_ms(layer: ProfiledLayer) -> float:
    return max(time.ms for time in (layer.base, layer.candidate) if time is not None)


def _bar(layer: ProfiledLayer) -> _Bar:
    note = f"{layer.speedup.estimate:.1f}×" if layer.verdict and layer.speedup else ""
    return _Bar(layer.name, layer.base.ms if layer.base else 0.0, _parts(layer), note)


def _parts(layer: ProfiledLayer) -> tuple[tuple[str, str, float], ...]:
    """The candidate's time, cut as its kernels' medians say; they need not sum to it exactly."""
    time = layer.candidate
    if time is None:
        return ()
    what, color = ("candidate, loses", BAD) if layer.verdict == "loses" else ("candidate", BLUE)
    reorders = sum(kernel.ms for kernel in time.kernels if kernel.role == "reorder")
    parts = ((what, color, max(time.ms - reorders, 0.0)), ("reorder between factors", AMBER, reorders))
    return tuple(part for part in parts if part[2] > 0)


def _outside(profile: ModelProfile) -> list[_Bar]:
    candidate = profile.candidate
    return [
        _Bar(
            words,
            profile.base.outside_layers[group].ms,
            (("candidate", BLUE, candidate.outside_layers[group].ms),) if candidate else (),
            "",
        )
        for group, words in NO_LAYER.items()
    ]
