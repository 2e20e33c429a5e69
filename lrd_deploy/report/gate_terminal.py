"""A gate's records for the terminal: the verdict, the cases, then reasons and warnings."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from lrd_deploy.records import BaselineManifest, GateResult, SelfTest, Verdict
from lrd_deploy.report.gate_wording import CASE_COLUMNS, CaseRow, bounds_sentence, case_rows, headline
from lrd_deploy.report.terminal import table

_STYLES: dict[Verdict, str] = {"PASS": "bold green", "FAIL": "bold red", "INCONCLUSIVE": "bold yellow"}
_UNBOUNDED = 10_000


def gate_table(result: GateResult) -> RenderableType:
    """Verdict first, then one row per case, then why; colours only on a terminal. Names are text, not markup."""
    evidence = result.evidence
    references = " and ".join(model.name for model in (evidence.baseline, evidence.anchor) if model is not None)
    against = f" against {references}" if references else ""
    lines = [
        Text(f"{evidence.candidate.name}{against}, decided by {result.decided_by}"),
        *(Text(f"because {reason}") for reason in result.reasons),
        *(Text(f"warning: {warning}") for warning in evidence.warnings),
    ]
    first = Text.assemble((result.verdict, _STYLES[result.verdict]), f"  {headline(result)}")
    if not result.cases:
        return Group(first, *lines)
    return Group(first, "", _Cases(result), Text(bounds_sentence(result.policy), style="dim"), "", *lines)


def self_test_table(found: SelfTest) -> RenderableType:
    """How often gates gave each verdict, with launches drawn anew and with every launch used once."""
    rows = [
        (f"{rates.slowdown:+.0%}", how, *(f"{share:.1%}" for share in (rates.fail, rates.passed, rates.inconclusive)),
         str(rates.gates), f"{rates.mean_launches:.1f}")
        for how, several in (("drawn anew", found.resampled), ("used once", found.disjoint))
        for rates in several
    ]  # fmt: skip
    columns = ("slowdown", "launches", "FAIL", "PASS", "INCONCLUSIVE", "gates", "launches per gate")
    return Group(
        table(columns, rows),
        f"from {found.launches} launches of the model beside itself; between launches the ratio varies by "
        f"{found.per_launch_sd:.1%} (SD). Slowdowns are simulated by scaling the candidate's times.",
        f"a false alarm is FAIL at +0%; a slowdown of {found.policy.max_slowdown:.0%} must be found",
    )


def baseline_table(manifest: BaselineManifest, folder: str) -> RenderableType:
    """What a bundle holds, and how to use it."""
    promotion = manifest.promotion
    labels = "with labels" if manifest.labelled else "without labels: agreement is gated instead of accuracy"
    lines = [
        f"{manifest.model} is the baseline in {folder} (sha256 {promotion.model_sha256[:16]}, opset {manifest.opset})",
        f"{manifest.samples} samples, {labels}; promoted {promotion.promoted_at}",
        *([f"promoted with the reason: {promotion.reason}"] if promotion.reason else []),
        f"gate a candidate: lrd-deploy gate --baseline {folder} --candidate CANDIDATE.onnx",
    ]
    return Group(*(escape(line) for line in lines))


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
