"""What verbs that take a recipe have in common: a built-in name, a YAML file, or the folder of an earlier run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lrd_deploy.pipeline import RunResult
    from lrd_deploy.pipeline.workspace import StoredRecipe

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A built-in name (digits), a .yaml file, or the folder of a run.")
]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="Folder of the run; finished stages in it are kept. [runs/NAME]")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the record as one JSON object, and nothing else.")]

SizeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--dim",
        help="With an ONNX file: the deployed size of an open dimension but the batch, such as sequence=128; may be "
        "repeated. [as in the calibration data]",
    ),
]
TableOption = Annotated[
    list[Path] | None,
    typer.Option("--table", help="Plan from a stored latency table, or a folder of them; may be given several times."),
]


def recipe_of(recipe: str) -> StoredRecipe:
    """Returns a recipe by name, by file, or as a run folder holds it."""
    from lrd_deploy.pipeline.workspace import StoredRecipe, stored_recipe
    from lrd_deploy.recipe import builtin_recipes, load_recipe

    if Path(recipe).is_dir() and recipe not in builtin_recipes():
        return stored_recipe(Path(recipe))
    beside = Path(recipe).resolve().parent if Path(recipe).is_file() else None
    return StoredRecipe(recipe=load_recipe(recipe), recipe_folder=beside)


def run_until(stage: str, recipe: str, out: Path | None, tables: list[Path] | None = None) -> RunResult:
    """Runs a recipe up to a stage, with progress on stderr; `tables` take the place of the recipe's own."""
    from lrd_deploy.cli.console import ConsoleObserver
    from lrd_deploy.pipeline import run
    from lrd_deploy.recipe import builtin_recipes

    stored = recipe_of(recipe)
    is_folder = Path(recipe).is_dir() and recipe not in builtin_recipes()
    folder = out or (Path(recipe) if is_folder else Path("runs", stored.recipe.name))
    changes = {"tables": tuple(table.resolve() for table in tables)} if tables else {}
    with ConsoleObserver() as observer:
        return run(
            stored.recipe.model_copy(update=changes),
            folder,
            recipe_folder=stored.recipe_folder,
            until=stage,
            observer=observer,
        )
