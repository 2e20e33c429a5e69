"""`lrd-deploy report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lrd_deploy.cli.recipe_argument import JsonOption


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a finished run.")],
    as_json: JsonOption = False,
) -> None:
    """Write the HTML page of a run again, and print its summary."""
    from lrd_deploy.cli.console import show
    from lrd_deploy.records import RunRecord
    from lrd_deploy.report.html import write_report
    from lrd_deploy.report.terminal import run_summary

    write_report(folder)
    record = RunRecord.read(folder / "run.json")
    show(record, run_summary(record, str(folder)), as_json=as_json)
