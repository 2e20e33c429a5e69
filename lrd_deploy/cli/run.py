"""`lrd-deploy run`."""

from __future__ import annotations

from lrd_deploy.cli.recipe_argument import JsonOption, OutOption, RecipeArgument, TableOption, run_until


def run(recipe: RecipeArgument, out: OutOption = None, table: TableOption = None, as_json: JsonOption = False) -> None:
    """Do everything: train, choose ranks, decompose, fine-tune, export, rewrite, measure, report.

    Stages whose inputs have not changed are not run again; a run that was killed goes on where it was.
    """
    from lrd_deploy.cli.console import show
    from lrd_deploy.report.terminal import run_summary

    result = run_until("report", recipe, out, table)
    show(result.record, run_summary(result.record, str(result.folder)), as_json=as_json)
