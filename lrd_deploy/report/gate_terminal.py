"""A gate's result for the terminal: the verdict, a table of the cases, then reasons and warnings."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lrd_deploy.records import GateResult, Verdict
from lrd_deploy.report.gate_wording import CASE_COLUMNS, bounds_sentence, case_rows, headline

_STYLES: dict[Verdict, str] = {"PASS": "bold green", "FAIL": "bold red", "INCONCLUSIVE": "bold yellow"}


def gate_table(result: GateResult) -> RenderableType:
    """Verdict first, then one row per case, then why; colours only on a terminal. Names are text, not markup."""
    evidence = result.evidence
    against = f" against {evidence.baseline.name}" if evidence.baseline is not None else ""
    lines = [
        Text(f"{evidence.candidate.name}{against}, decided by {result.decided_by}"),
        *(Text(f"because {reason}") for reason in result.reasons),
        *(Text(f"warning: {warning}") for warning in evidence.warnings),
    ]
    first = Text.assemble((result.verdict, _STYLES[result.verdict]), f"  {headline(result)}")
    if not result.cases:
        return Group(first, *lines)
    return Group(first, "", _cases(result), Text(bounds_sentence(result.policy), style="dim"), "", *lines)


def _cases(result: GateResult) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for number, column in enumerate(CASE_COLUMNS):
        table.add_column(column, justify="left" if number < 2 else "right", overflow="fold")
    for row in case_rows(result):
        table.add_row(Text(row.name), Text(row.verdict, style=_STYLES[row.verdict]), *map(Text, row[2:]))
    return table
