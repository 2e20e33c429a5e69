"""`lrd-deploy report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lrd_deploy.cli.recipe_argument import JsonOption


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder of a finished run, or of a gate's result as gate.json.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Write the HTML page of a run or of a gate again, and print its summary."""
    from lrd_deploy.cli.console import show
    from lrd_deploy.report.html import stored_records, write_report
    from lrd_deploy.report.summary import report_summary

    page = write_report(folder)
    record, gate = stored_records(folder)
    show(record or gate, report_summary(record, gate, page), as_json=as_json)
