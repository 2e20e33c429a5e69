from html import unescape

from hypothesis import given

from lrd_deploy.report.ci.legible import legible
from lrd_deploy.report.ci.markdown import escaped, table
from tests.report.ci.hostile import names


@given(names)
def test_escaped_text_reads_as_it_is_written_and_is_no_markup(name):
    text = escaped(name)
    assert unescape(text) == legible(name)
    assert not set(text) & set("<>|`*_~[]{}$\\@\n")
    assert "://" not in text


def test_a_table_has_a_rule_under_its_head():
    assert table(("case", "ms"), [("a", "1")]) == "| case | ms |\n| --- | ---: |\n| a | 1 |"
