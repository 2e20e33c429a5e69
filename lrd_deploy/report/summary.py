"""What `lrd-deploy report` says of a folder: the gate's verdict first, then what the run found."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from lrd_deploy.records import GateResult, RunRecord
from lrd_deploy.report.gate_terminal import gate_table
from lrd_deploy.report.terminal import run_summary


def report_summary(record: RunRecord | None, gate: GateResult | None, page: Path) -> RenderableType:
    """Returns the summary of the records that a folder holds, and where its page is."""
    parts: list[RenderableType] = [gate_table(gate)] if gate is not None else []
    if record is not None:
        return Group(*parts, *([""] if parts else []), run_summary(record, str(page.parent)))
    return Group(*parts, Text(f"report: {page}"))
