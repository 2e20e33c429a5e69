"""What verbs that take a recipe have in common: a built-in name, a YAML file, or the folder of an earlier run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lrd_deploy.pipeline import RunResult

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A built-in name (digits), a .yaml file, or the folder of a run.")
]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="Folder of the run; finished stages in it are kept. [runs/NAME]")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the record as one JSON object, and nothing else.")]


def run_until(stage: str, recipe: str, out: Path | None) -> RunResult:
    """Runs a recipe up to a stage, with progress on stderr."""
    from lrd_deploy.cli.console import ConsoleObserver
    from lrd_deploy.pipeline import run
    from lrd_deploy.pipeline.workspace import StoredRecipe, stored_recipe
    from lrd_deploy.recipe import builtin_recipes, load_recipe

    if Path(recipe).is_dir() and recipe not in builtin_recipes():
        stored, folder = stored_recipe(Path(recipe)), out or Path(recipe)
    else:
        beside = Path(recipe).resolve().parent if Path(recipe).is_file() else None
        stored = StoredRecipe(recipe=load_recipe(recipe), recipe_folder=beside)
        folder = out or Path("runs", stored.recipe.name)
    with ConsoleObserver() as observer:
        return run(stored.recipe, folder, recipe_folder=stored.recipe_folder, until=stage, observer=observer)
