import xml.etree.ElementTree as ET
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lrd_deploy.report.trend import change_bounds, trend_markdown, trend_points, trend_rows, trend_table
from lrd_deploy.report.trend_figure import trend
from tests.report.ci.hostile import PIECES
from tests.report.ci.results import HISTORY, promotion
from tests.tolerances import sum_tolerance

HOSTILE = "".join(piece for piece in PIECES if piece.isprintable())
changes = st.lists(st.floats(min_value=-0.5, max_value=1.0), max_size=20)


def shown(renderable):
    console = Console(width=200, highlight=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


@given(changes)
def test_changes_multiply(shares):
    points = trend_points([promotion(0), *(promotion(day, share) for day, share in enumerate(shares, 1))])
    expected = prod(1 + share for share in shares)
    assert 1 + points[-1].drift.change == pytest.approx(expected, rel=sum_tolerance(float, len(shares)))


@given(changes.filter(len))
def test_the_drift_is_no_surer_than_its_least_sure_change(shares):
    history = [promotion(day, share) for day, share in enumerate(shares)]
    drift = trend_points(history)[-1].drift
    widest = max((1 + high) / (1 + low) for low, high in map(change_bounds, history))
    assert (1 + drift.high) / (1 + drift.low) >= widest * (1 - sum_tolerance(float, len(shares)))


def test_one_change_has_the_drift_and_the_bounds_that_the_gate_gave():
    change = promotion(1, 0.03)
    drift = trend_points([promotion(0), change])[-1].drift
    assert drift == pytest.approx((change.change, change.low, change.high), rel=sum_tolerance(float, 4))


def test_lines_break_where_the_machine_changes_and_the_drift_goes_on():
    history = [promotion(0, 0.01), promotion(1, 0.02), promotion(2, 0.03, fingerprint="f" * 16)]
    points = trend_points(history)
    assert [point.segment for point in points] == [0, 0, 1]
    assert points[-1].drift.change == pytest.approx(1.01 * 1.02 * 1.03 - 1, rel=sum_tolerance(float, 8))


def test_a_promotion_without_a_gate_begins_a_new_series():
    points = trend_points([promotion(0), promotion(1, 0.02), promotion(2), promotion(3, 0.01)])
    assert [point.segment for point in points] == [0, 0, 1, 1]
    assert points[2].drift == (0, 0, 0)
    assert points[3].drift.change == pytest.approx(0.01, rel=sum_tolerance(float, 4))


def test_bounds_that_were_not_recorded_are_the_change():
    bare = promotion(1, 0.03).model_copy(update={"low": None, "high": None})
    assert change_bounds(bare) == (0.03, 0.03)
    ET.fromstring(trend([promotion(0), bare]))


def test_a_change_beyond_all_measure_still_has_a_drift():
    assert trend_points([promotion(0, -1.0)])[0].drift.change == pytest.approx(-1, abs=1e-5)


def test_the_picture_is_svg_without_markup_of_ours():
    hostile = [
        one.model_copy(update={"promoted_at": HOSTILE, "model_sha256": "<$_$>", "reason": HOSTILE}) for one in HISTORY
    ]
    svg = trend(hostile)
    ET.fromstring(svg)
    assert "script" not in svg


def test_the_same_history_gives_the_same_picture():
    assert trend(HISTORY) == trend(HISTORY)


@pytest.mark.parametrize("length", [1, 2, len(HISTORY), 80])
def test_any_length_is_a_picture(length):
    ET.fromstring(trend((HISTORY * 10)[:length]))


def test_the_picture_shows_every_promotion():
    pictures = {trend(HISTORY[:length]) for length in range(1, len(HISTORY) + 1)}
    assert len(pictures) == len(HISTORY)


def test_no_history_is_said_to_be_none():
    assert trend(()) == ""
    assert "nothing was promoted" in shown(trend_table(()))
    assert "Nothing was promoted" in trend_markdown(())


def test_the_tables_hold_the_same_rows():
    text = shown(trend_table(HISTORY))
    for row in trend_rows(HISTORY):
        for cell in row:
            assert cell in text
    assert "2026-09-23: a wider head" in text
    assert trend_rows(HISTORY)[4][2:5] == ("FAIL", "+7.2% [+6.2%, +7.9%]", "+7.5%")


def test_hostile_text_stays_in_its_cell():
    hostile = promotion(1, 0.01, reason="[bold]a|b\n# c<script>").model_copy(update={"fingerprint": "|`<b>`"})
    lines = trend_markdown([promotion(0), hostile]).split("\n")
    assert {line.count("|") for line in lines if line.startswith("|")} == {9}
    assert not any("<" in line or line.startswith("#") for line in lines)
    assert "[bold]a|b # c<script>" in shown(trend_table([hostile]))
