"""A gate's result for the terminal: the verdict, the cases, then reasons and warnings."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from lrd_deploy.records import GateResult, Verdict
from lrd_deploy.report.gate_wording import CASE_COLUMNS, CaseRow, bounds_sentence, case_rows, headline

_STYLES: dict[Verdict, str] = {"PASS": "bold green", "FAIL": "bold red", "INCONCLUSIVE": "bold yellow"}
_UNBOUNDED = 10_000


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
    return Group(first, "", _Cases(result), Text(bounds_sentence(result.policy), style="dim"), "", *lines)


class _Cases:
    """A table of the cases where the terminal is wide enough for it, else two lines for each."""

    def __init__(self, result: GateResult) -> None:
        self.rows = case_rows(result)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = _table(self.rows)
        wanted = Measurement.get(console, options.update(max_width=_UNBOUNDED), table).maximum
        yield from [table] if wanted <= options.max_width else map(_lines, self.rows)


def _table(rows: Sequence[CaseRow]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for number, column in enumerate(CASE_COLUMNS):
        table.add_column(column, justify="left" if number < 2 else "right")
    for row in rows:
        table.add_row(Text(row.name), Text(row.verdict, style=_STYLES[row.verdict]), *map(Text, row[2:]))
    return table


def _lines(row: CaseRow) -> Text:
    numbers = (
        f"\n  {row.base_ms} → {row.candidate_ms} ms, change {row.change} (at least {row.low}, at most {row.high})"
        f"\n  {row.launches} launches, which find {row.min_detectable}; control {row.control}"
    )
    return Text.assemble(f"{row.name}  ", (row.verdict, _STYLES[row.verdict]), numbers)
