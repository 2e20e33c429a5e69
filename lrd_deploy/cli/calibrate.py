"""`lrd-deploy calibrate`: measurements taken once and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from lrd_deploy.cli.recipe_argument import JsonOption, RecipeArgument


def latency(
    recipe: RecipeArgument,
    table: Annotated[
        Path, typer.Option("--table", help="The table to make or add to; keep it with your project.")
    ] = Path("calibration/latency.jsonl"),
    work: Annotated[
        Literal["inference", "training"], typer.Option(help="A pass on the deployment backend, or a training step.")
    ] = "inference",
    shard: Annotated[str, typer.Option(metavar="I/N", help="Only every N-th layer, from the I-th on.")] = "1/1",
    as_json: JsonOption = False,
) -> None:
    """Time a model's layers in every form, for plans made anywhere with --table.

    The weights do not matter, so nothing is trained. Tables of several machines or shards merge: pass them all.
    """
    from lrd_deploy.cli.console import ConsoleObserver, show
    from lrd_deploy.cli.recipe_argument import recipe_of
    from lrd_deploy.pipeline.calibrating import Shard, calibrate_latency
    from lrd_deploy.report.terminal import calibration_table

    part, stored = Shard.parse(shard), recipe_of(recipe)
    with ConsoleObserver() as observer:
        done = calibrate_latency(stored.recipe, stored.recipe_folder, table, observer, work=work, shard=part)
    show(done, calibration_table(done), as_json=as_json)
