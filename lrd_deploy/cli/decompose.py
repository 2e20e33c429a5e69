"""`lrd-deploy decompose`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lrd_deploy.cli.recipe_argument import JsonOption


def decompose(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="With model.safetensors, or shards and an index.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Another folder; finished shards in it are kept.")],
    alpha: Annotated[float, typer.Option(help="How many times fewer parameters a factorised weight has.")] = 2.0,
    round_to: Annotated[int, typer.Option(help="Ranks become multiples of this, rounded down.")] = 64,
    include: Annotated[
        list[str] | None, typer.Option(help="Layers by name, such as 'model.layers.*'; may be repeated. [all]")
    ] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Layers that stay dense; may be repeated.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Factorise a checkpoint on disk that need not fit in memory; start with 'accelerate launch' to share the work."""
    from lrd_deploy.cli.console import ConsoleObserver, show
    from lrd_deploy.cli.written import Written
    from lrd_deploy.decompose.checkpoint import decompose_checkpoint
    from lrd_deploy.observer import SilentObserver
    from lrd_deploy.processes import Processes
    from lrd_deploy.report.terminal import checkpoint_table

    options = {"policy": _policy(alpha, round_to), "include": tuple(include or ("*",)), "skip": tuple(skip or ())}
    if not Processes.launched().is_main:
        decompose_checkpoint(folder, output, **options, observer=SilentObserver())
        return
    with ConsoleObserver() as observer:
        report = decompose_checkpoint(folder, output, **options, observer=observer)
    show(report, checkpoint_table(report), as_json=as_json, wrote=[Written(output)])


def _policy(alpha: float, round_to: int):  # noqa: ANN202, the type would import pydantic
    from lrd_deploy.errors import UsageError
    from lrd_deploy.recipe.policies import UniformRank

    if not 1 < alpha < float("inf") or round_to < 1:
        raise UsageError(
            "choosing ranks",
            found=f"--alpha {alpha:g} --round-to {round_to}",
            accepted="an alpha above 1, and a multiple of at least 1",
            remedy="correct --alpha or --round-to",
        )
    return UniformRank(alpha=alpha, round_to=round_to)
