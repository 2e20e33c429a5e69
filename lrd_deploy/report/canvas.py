"""The ground that every figure is drawn on: SVG that follows the page's colours and fits a screen or a phone."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

# On white paper; each has a contrast of at least 4.5 there. The page's style sheet says what they are on dark ground.
PALETTE = {
    "ink": "#4b5563",
    "dense": "#6b7280",
    "lowrank": "#b8421d",
    "blue": "#1d6fb8",
    "violet": "#7a52c7",
    "green": "#2b7a3d",
    "amber": "#9a5b00",
    "bad": "#b3261e",
}
INK, DENSE, LOWRANK, BLUE, VIOLET, GREEN, AMBER, BAD = PALETTE.values()

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_COLOR = re.compile("|".join(PALETTE.values()))
_REFERENCE = re.compile(r"url\(#([^)]*)\)")
_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")


class Sheet(NamedTuple):
    """What a figure is drawn for: its width in inches, its text in points, and how many columns small plots take."""

    width: float
    text: float
    columns: int

    @property
    def is_narrow(self) -> bool:
        """True where labels have no room beside a plot."""
        return self.columns == 1


WIDE, NARROW = Sheet(8.4, 8.5, 3), Sheet(3.5, 8.5, 1)
_TWO_COLUMNS = 19  # letters of a label that fits beside another on a narrow sheet
_Titles = Mapping[str, Sequence[str]]


class Plot(NamedTuple):
    """One figure drawn for a wide and for a narrow screen, and its text alternative; `narrow` is "" where one does."""

    name: str
    label: str
    wide: str
    narrow: str


def new_axes(sheet: Sheet, *, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    """Returns a figure and its plot, or an array of plots; `height` in inches."""
    from matplotlib.figure import Figure  # 0.4 s to import; Figure itself needs no display

    figure = Figure(figsize=(sheet.width, height), layout="constrained")
    figure.patch.set_alpha(0)
    plots = figure.subplots(rows, columns, squeeze=False, sharex="col" if rows > 1 and columns == 1 else False)
    for plot in plots.flat:
        plot.patch.set_alpha(0)
        plot.tick_params(colors=INK, labelsize=sheet.text)
        for text in (plot.xaxis.label, plot.yaxis.label, plot.title):
            text.set(color=INK, size=sheet.text)
        for side, spine in plot.spines.items():
            spine.set_color(INK)
            spine.set_visible(side in {"left", "bottom"})
    return figure, plots[0, 0] if plots.size == 1 else plots


def add_legend(figure: Any, sheet: Sheet, handles: Sequence[Any] | None = None, *, columns: int = 4) -> None:
    """Adds a legend above the plots, where it can hide no data; of every labelled mark unless `handles` are given."""
    if handles is None:
        found = [axes.get_legend_handles_labels() for axes in figure.axes]
        named = {label: handle for handles, labels in found for handle, label in zip(handles, labels, strict=True)}
    else:
        named = {handle.get_label(): handle for handle in handles}
    narrow = 2 if max(map(len, named), default=0) <= _TWO_COLUMNS else 1
    if named:
        figure.legend(
            handles=list(named.values()),
            labels=list(named),
            loc="outside upper left",
            ncols=min(len(named), narrow if sheet.is_narrow else columns),
            frameon=False,
            fontsize=sheet.text,
            labelcolor=INK,
            handlelength=1.6,
            columnspacing=1.4,
        )


def literal(text: str) -> str:
    """Returns a name as matplotlib draws it letter by letter: no mathematics, no line breaks."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text).replace(
        "$", r"\$"
    )


def on_both_sheets(name: str, label: str, draw: Callable[[Sheet], Any], titles: _Titles | None = None) -> Plot:
    """Draws a figure for both widths.

    Args:
        name: prefix of the ids in the SVG; unique within a page.
        label: the text alternative.
        draw: returns a figure for a sheet.
        titles: what a pointer over a mark shows, one per mark, by the mark's gid.
    """
    wide, narrow = (
        _inline(_rendered(draw(sheet)), f"{name}-{suffix}-", titles or {})
        for sheet, suffix in ((WIDE, "w"), (NARROW, "n"))
    )
    return Plot(name, label, wide, narrow)


def on_narrow_sheet(name: str, label: str, figure: Any, titles: _Titles) -> Plot:
    """Returns a small plot, several of which stand side by side where there is room."""
    return Plot(name, label, _inline(_rendered(figure), f"{name}-", titles), "")


def as_file(figure: Any) -> str:
    """Returns a picture that stands alone: on white, so that it reads in a viewer of any colour."""
    figure.patch.set(facecolor="white", alpha=1)
    text = _rendered(figure)
    return text[text.index("<svg") :]


def _rendered(figure: Any) -> str:
    """Text becomes paths, so that nothing in it is markup or needs a font."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "lrd-deploy"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font")  # a box is drawn in its place
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _inline(text: str, prefix: str, titles: _Titles) -> str:
    """An <svg> for a page: ids of its own, the page's colours, as wide as its place, titles on its marks."""
    from xml.etree import ElementTree as ET

    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    root = ET.fromstring(text)  # noqa: S314, matplotlib's
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in {"metadata", "style"}:
                parent.remove(child)
    for group in root.iter(f"{{{_SVG}}}g"):
        _add_titles(group, titles.get(group.get("id"), ()))
    _shorten(root, prefix)
    return _COLOR.sub(lambda found: f"var(--chart-{_NAMES[found[0]]})", ET.tostring(root, encoding="unicode"))


_NAMES = {color: name for name, color in PALETTE.items()}


def _add_titles(group: Any, titles: Sequence[str]) -> None:
    from xml.etree import ElementTree as ET

    marks = list(group.iter(f"{{{_SVG}}}use")) or [group]
    for mark, title in zip(marks, titles, strict=False):
        ET.SubElement(mark, f"{{{_SVG}}}title").text = title


def _shorten(root: Any, prefix: str) -> None:
    """Keeps the ids that are used, with a prefix, and two decimals of coordinates."""
    link = f"{{{_XLINK}}}href"
    used = {element.get(link, "")[1:] for element in root.iter()}
    used |= {name for element in root.iter() for value in element.attrib.values() for name in _REFERENCE.findall(value)}
    for element in root.iter():
        name = element.attrib.pop("id", None)
        for attribute, value in element.attrib.items():
            if attribute == link:
                element.set(attribute, f"#{prefix}{value[1:]}")
            elif attribute in {"d", "x", "y"}:
                rounded = _LONG_NUMBER.sub(lambda found: f"{float(found[0]):.2f}", value)
                element.set(attribute, " ".join(rounded.split()))
            else:
                element.set(attribute, _REFERENCE.sub(rf"url(#{prefix}\1)", value))
        if name in used:
            element.set("id", prefix + name)
