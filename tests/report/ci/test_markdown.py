from hypothesis import given, settings
from markdown_it import MarkdownIt

from lrd_deploy.report.ci.github import step_summary
from lrd_deploy.report.ci.legible import legible
from lrd_deploy.report.ci.markdown import escaped, table
from tests.report.ci.hostile import names, results
from tests.report.ci.results import CALM, result

READER = MarkdownIt("commonmark", {"linkify": False}).enable(["table", "strikethrough"])


def cells(markdown):
    """The text of every table cell, as a reader of markdown shows it."""
    tokens = READER.parse(markdown)
    inside = [tokens[at + 1] for at, token in enumerate(tokens) if token.type == "td_open"]
    return ["".join(child.content for child in token.children) for token in inside]


@given(names)
def test_escaped_text_reads_as_it_is_written_and_is_no_markup(name):
    (_, inline, _) = READER.parse(f"x {escaped(name)}")
    assert {child.type for child in inline.children} == {"text"}
    assert inline.content.startswith("x")
    assert "".join(child.content for child in inline.children) == f"x {legible(name)}".strip()
    # What only GitHub reads: formulas, mentions, links without brackets.
    assert not set(escaped(name)) & set("$@|")
    assert "://" not in escaped(name)


def test_a_table_has_a_rule_under_its_head():
    assert table(("case", "ms"), [("a", "1")]) == "| case | ms |\n| --- | ---: |\n| a | 1 |"


def test_a_hostile_case_is_one_cell():
    hostile = "a|b <b>`c` *d* [e](f) $g$ ~~h~~ \\"
    assert cells(step_summary(result([CALM.model_copy(update={"name": hostile})])))[0] == hostile


@settings(deadline=None, max_examples=60)
@given(results())
def test_a_summary_has_the_blocks_that_it_should_whatever_the_names(gate_result):
    tokens = READER.parse(step_summary(gate_result))
    kinds = {token.type for token in tokens} | {child.type for token in tokens for child in token.children or ()}
    assert not kinds & {"html_block", "html_inline", "link_open", "image", "code_block", "blockquote_open"}
    assert [token.tag for token in tokens if token.type == "heading_open"] == ["h2"]
    assert sum(token.type == "fence" for token in tokens) == 1
    assert len(cells(step_summary(gate_result))) == 7 * len(gate_result.cases)
