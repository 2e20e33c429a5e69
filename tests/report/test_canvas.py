import re
import xml.etree.ElementTree as ET

import pytest

from lrd_deploy.report.canvas import INK, NARROW, WIDE, add_legend, as_file, literal, new_axes, on_both_sheets
from tests.report.folders import HOSTILE_NAMES

LINK = "{http://www.w3.org/1999/xlink}href"


def drawn(sheet):
    figure, plot = new_axes(sheet, height=2)
    plot.plot([1, 2, 3], [3, 1, 2], "o", color=INK, label="three", gid="three")
    add_legend(figure, sheet)
    return figure


@pytest.fixture(scope="module")
def plot():
    return on_both_sheets("name", "label", drawn, {"three": ["<first>", "second", "third"]})


def test_what_refers_within_a_figure_finds_it_there_and_nowhere_else(plot):
    for svg, prefix in ((plot.wide, "name-w-"), (plot.narrow, "name-n-")):
        root = ET.fromstring(svg)
        ids = [element.get("id") for element in root.iter() if element.get("id")]
        used = {element.get(LINK)[1:] for element in root.iter() if element.get(LINK)}
        used |= set(re.findall(r"url\(#([^)]*)\)", svg))
        assert len(ids) == len(set(ids))
        assert used == set(ids)
        assert all(name.startswith(prefix) for name in ids)


def test_an_inline_figure_takes_the_page_s_colours_and_its_ground(plot):
    assert "var(--chart-ink)" in plot.wide
    assert INK not in plot.wide
    assert not re.search(r"fill: (#ffffff|white)(?!; opacity: 0)", plot.wide)


def test_a_file_stands_on_white_with_colours_of_its_own():
    svg = as_file(drawn(WIDE))
    assert re.search(r"fill: #ffffff(?!; opacity: 0)", svg)
    assert INK in svg
    assert "var(" not in svg


def test_marks_have_titles_in_their_order(plot):
    titles = [element.text for element in ET.fromstring(plot.narrow).iter("{http://www.w3.org/2000/svg}title")]
    assert titles == ["<first>", "second", "third"]


def test_numbers_are_short_and_glyphs_keep_their_scale(plot):
    coordinates = " ".join(re.findall(r' d="([^"]*)"', plot.wide)).split()
    lengths = [len(number.partition(".")[2]) for number in coordinates]
    assert max(lengths) <= 2
    assert f"scale({WIDE.text / 100:g} " in plot.wide  # points over a font's units


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_name_is_drawn_letter_by_letter(name, recwarn):
    def with_name(sheet):
        figure, axes = new_axes(sheet, height=2)
        axes.set_title(literal(name))
        return figure

    plot = on_both_sheets("x", "x", with_name)
    ET.fromstring(plot.wide)
    assert "pwned" not in plot.wide
    assert [warning for warning in recwarn if "Glyph" in str(warning.message)] == []


def test_dollars_are_letters_and_not_mathematics():
    def glyphs(title):
        figure, axes = new_axes(WIDE, height=2)
        axes.set_title(literal(title))
        return as_file(figure).count("<use")

    assert glyphs("$x^2$") - glyphs("") == len("$x^2$")
    assert literal("a\nb") == "a\N{REPLACEMENT CHARACTER}b"


def test_a_narrow_sheet_is_read_by_one_column():
    assert NARROW.is_narrow
    assert not WIDE.is_narrow
