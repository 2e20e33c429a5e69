import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from lrd_deploy.report.ci.legible import distinct, legible
from tests.report.ci.hostile import names


@given(names)
def test_a_legible_name_is_one_line_that_any_file_can_hold(name):
    line = legible(name)
    assert len(line.splitlines()) <= 1
    assert len(line) <= 200
    assert not {unicodedata.category(character) for character in line} & {"Cc", "Cs"}
    line.encode()


@given(names)
def test_a_legible_name_stays_as_it_is(name):
    assert legible(legible(name)) == legible(name)


def test_ordinary_names_are_not_touched():
    for name in ("batch 8", "größe 1×3", "👩‍👩‍👧", "a|b", "<b>"):
        assert legible(name) == name


def test_text_that_would_be_shown_in_another_order_is_not():
    assert legible("gpj.\u202eexe") == "gpj.exe"


@given(st.lists(names | st.sampled_from(("a", "a (2)", "")), max_size=8))
def test_distinct_names_are_as_many_as_before_and_differ(given_names):
    found = distinct(given_names)
    assert len(set(found)) == len(found) == len(given_names)
    assert all(found)


def test_names_that_differ_are_kept():
    assert distinct(["a", "b", "a"]) == ["a", "b", "a (2)"]
