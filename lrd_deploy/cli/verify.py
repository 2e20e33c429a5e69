"""`lrd-deploy verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lrd_deploy.cli.recipe_argument import JsonOption


def verify(
    reference: Annotated[Path, typer.Argument(metavar="A.onnx")],
    candidate: Annotated[Path, typer.Argument(metavar="B.onnx")],
    inputs: Annotated[Path | None, typer.Option(help="An .npz file of real inputs by name. [random]")] = None,
    tolerance: Annotated[
        float | None, typer.Option(min=0.0, help="Largest relative L2 difference. [what float32 rounding explains]")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare the outputs of two ONNX files at several batches; exit code 1 when they differ by more than allowed."""
    from lrd_deploy.cli.console import show
    from lrd_deploy.engines.inputs import random_batches, stored_batches
    from lrd_deploy.engines.verify import verify as verify_files
    from lrd_deploy.report.terminal import difference_table

    sizes = (1, 2, 7)
    batches = stored_batches(inputs, sizes) if inputs else random_batches(reference, sizes)
    difference = verify_files(reference, candidate, batches, tolerance=tolerance)
    show(difference, difference_table(difference), as_json=as_json)
    if not difference.passed:
        raise typer.Exit(1)
