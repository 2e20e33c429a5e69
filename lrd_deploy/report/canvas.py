"""The ground that every figure is drawn on: SVG that reads on light and dark."""

from __future__ import annotations

import io
from typing import Any

INK, DENSE, LOWRANK = "#7a7f87", "#7a7f87", "#d9542b"


def new_axes(*, width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    """Returns a figure and its plot, or an array of plots; sizes in inches."""
    from matplotlib.figure import Figure  # 0.4 s to import; Figure itself needs no display

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    plots = figure.subplots(rows, columns, squeeze=False)
    for plot in plots.flat:
        plot.patch.set_alpha(0)
        plot.tick_params(colors=INK, labelsize=8)
        for text in (plot.xaxis.label, plot.yaxis.label, plot.title):
            text.set(color=INK, size=8)
        for side, spine in plot.spines.items():
            spine.set_color(INK)
            spine.set_visible(side in {"left", "bottom"})
    return figure, plots[0, 0] if plots.size == 1 else plots


def add_legend(axes: Any) -> None:
    """Adds a legend where anything has a label."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)


def as_svg(figure: Any) -> str:
    """Returns the bare <svg> element; text becomes paths, so that nothing in it is markup or needs a font."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "lrd-deploy"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
