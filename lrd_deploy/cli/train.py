"""`lrd-deploy train`."""

from __future__ import annotations

from lrd_deploy.cli.recipe_argument import JsonOption, OutOption, RecipeArgument, run_until


def train(recipe: RecipeArgument, out: OutOption = None, as_json: JsonOption = False) -> None:
    """Decompose the model and fine-tune it with sequential freezing."""
    from lrd_deploy.cli.console import show
    from lrd_deploy.cli.written import Written
    from lrd_deploy.report.terminal import training_table

    result = run_until("lowrank", recipe, out)
    wrote = [Written(result.folder / result.lowrank.weights)]
    show(result.lowrank, training_table(result.lowrank), as_json=as_json, wrote=wrote)
