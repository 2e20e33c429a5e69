"""`lrd-deploy doctor`."""

from __future__ import annotations

from lrd_deploy.cli.recipe_argument import JsonOption


def doctor(as_json: JsonOption = False) -> None:
    """Say what works on this machine, and what to install for the rest."""
    from lrd_deploy.bench.diagnosis import diagnose
    from lrd_deploy.cli.console import show
    from lrd_deploy.report.terminal import diagnosis_table

    found = diagnose()
    show(found, diagnosis_table(found), as_json=as_json)
