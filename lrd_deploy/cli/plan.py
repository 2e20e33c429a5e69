"""`lrd-deploy plan`."""

from __future__ import annotations

from lrd_deploy.cli.recipe_argument import JsonOption, OutOption, RecipeArgument, TableOption, run_until


def plan(recipe: RecipeArgument, out: OutOption = None, table: TableOption = None, as_json: JsonOption = False) -> None:
    """Choose ranks and say why, layer by layer; the model is not changed.

    Trains the dense model first where it comes untrained.
    """
    from lrd_deploy.cli.console import show
    from lrd_deploy.report.terminal import figures_of, plan_table

    result = run_until("plan", recipe, out, table)
    show(result.plan, plan_table(result.plan, figures_of(result.folder)), as_json=as_json)
