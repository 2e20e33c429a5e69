"""A baseline's history as a table: what each promotion changed, and what all of them together."""

from __future__ import annotations

from collections.abc import Sequence
from math import expm1, hypot, log1p
from typing import TYPE_CHECKING, NamedTuple

from lrd_deploy.records import Promotion
from lrd_deploy.report.ci.legible import legible
from lrd_deploy.report.ci.markdown import escaped
from lrd_deploy.report.ci.markdown import table as markdown_table
from lrd_deploy.report.wording import milliseconds

if TYPE_CHECKING:
    from rich.console import RenderableType

_COLUMNS = ("promoted", "model", "verdict", "change [bounds]", "drift", "p50 before, ms", "p50 after, ms", "machine")
_LEAST_SHARE = -0.999999  # of a change: what is faster than this is a broken measurement, and has no logarithm


class Drift(NamedTuple):
    """A change in latency since a series began, as a share; 0.05 is 5 % slower."""

    change: float
    low: float
    high: float


class Point(NamedTuple):
    """One promotion within its history.

    Attributes:
        promotion: as recorded.
        drift: since the first promotion, or since the last one that was not measured. It goes on when the machine
            changes, since each change is a ratio of two models measured side by side.
        segment: numbers the stretches within which absolute times compare: one machine, without gaps.
    """

    promotion: Promotion
    drift: Drift
    segment: int


def trend_points(promotions: Sequence[Promotion]) -> tuple[Point, ...]:
    """Returns the history with its drift.

    Changes multiply. Their bounds are combined as those of independent measurements: on the scale of logarithms, the
    root of the sum of squared distances.
    """
    points: list[Point] = []
    total = below = above = 0.0
    segment = 0
    for promotion in promotions:
        if promotion.change is None:
            total = below = above = 0.0
        else:
            step, low, high = (_log(share) for share in (promotion.change, *change_bounds(promotion)))
            total, below, above = total + step, hypot(below, step - low), hypot(above, high - step)
        if points and (promotion.change is None or promotion.fingerprint != points[-1].promotion.fingerprint):
            segment += 1
        points.append(Point(promotion, Drift(expm1(total), expm1(total - below), expm1(total + above)), segment))
    return tuple(points)


def change_bounds(promotion: Promotion) -> tuple[float, float]:
    """Returns the bounds of a change; where one was not recorded, the change itself."""
    low, high = promotion.low, promotion.high
    return promotion.change if low is None else low, promotion.change if high is None else high


def trend_table(promotions: Sequence[Promotion]) -> RenderableType:
    """Returns the history for the terminal."""
    from rich.console import Group
    from rich.markup import escape

    from lrd_deploy.report.terminal import table

    if not promotions:
        return "nothing was promoted yet"
    return Group(table(_COLUMNS, trend_rows(promotions)), *(escape(line) for line in _notes(promotions)))


def trend_markdown(promotions: Sequence[Promotion]) -> str:
    """Returns the history as markdown."""
    if not promotions:
        return "Nothing was promoted yet.\n"
    rows = [[escaped(cell) for cell in row] for row in trend_rows(promotions)]
    notes = "\n".join(f"- {escaped(line, 500)}" for line in _notes(promotions))
    return f"{markdown_table(_COLUMNS, rows)}\n\n{notes}\n"


def trend_rows(promotions: Sequence[Promotion]) -> list[tuple[str, ...]]:
    """Returns a row of text per promotion."""
    return [
        (
            legible(point.promotion.promoted_at)[:10],
            legible(point.promotion.model_sha256)[:12],
            point.promotion.verdict or "not gated",
            _change(point.promotion),
            f"{point.drift.change:+.1%}",
            milliseconds(point.promotion.base_ms),
            milliseconds(point.promotion.candidate_ms),
            legible(point.promotion.fingerprint)[:8],
        )
        for point in trend_points(promotions)
    ]


def _change(promotion: Promotion) -> str:
    if promotion.change is None:
        return "–"
    low, high = change_bounds(promotion)
    return f"{promotion.change:+.1%} [{low:+.1%}, {high:+.1%}]"


def _log(share: float) -> float:
    return log1p(max(share, _LEAST_SHARE))


def _notes(promotions: Sequence[Promotion]) -> list[str]:
    last = trend_points(promotions)[-1].drift
    return [
        f"drift {last.change:+.1%} [{last.low:+.1%}, {last.high:+.1%}] since the first, or the last that was not gated",
        "milliseconds are information only: they belong to one machine and one day",
    ] + [
        f"{legible(promotion.promoted_at)[:10]}: {legible(promotion.reason, 400)}"
        for promotion in promotions
        if promotion.reason
    ]
