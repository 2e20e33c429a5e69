"""`lrd-deploy rewrite`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lrd_deploy.cli.recipe_argument import JsonOption


def rewrite(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="Any ONNX file with factors in it.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the result goes.")],
    quantum: Annotated[int | None, typer.Option(min=1, help="With pad: ranks become multiples of this. [16]")] = None,
    mode: Annotated[str, typer.Option(help="pad: zeros up to the quantum. merge: factors back into one node.")] = "pad",
    as_json: JsonOption = False,
) -> None:
    """Make every rank one the hardware likes, in any ONNX file; the outputs stay, and are compared."""
    from lrd_deploy.cli.console import show
    from lrd_deploy.engines.inputs import random_batches
    from lrd_deploy.errors import UsageError
    from lrd_deploy.pipeline.rewriting import rewrite_model
    from lrd_deploy.report.terminal import rewrite_table
    from lrd_deploy.rewrite.merge_factors import MergeFactors
    from lrd_deploy.rewrite.pad_rank import PadRank

    modes = {"pad": PadRank(quantum or 16), "merge": MergeFactors()}
    if mode not in modes or (mode == "merge" and quantum is not None):
        raise UsageError(
            "choosing how to rewrite",
            found=f"--mode {mode} --quantum {quantum}" if quantum else f"--mode {mode}",
            accepted="--mode pad, with a --quantum if you like, or --mode merge without one",
            remedy="choose one of the two",
        )
    report = rewrite_model(model, [modes[mode]], output, random_batches(model, (1, 2, 7))).report
    show(report, rewrite_table(report), as_json=as_json)
