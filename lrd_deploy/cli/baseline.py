"""`lrd-deploy baseline promote` and `lrd-deploy baseline history`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lrd_deploy.cli.picture_argument import check_svg
from lrd_deploy.cli.recipe_argument import JsonOption

FolderArgument = Annotated[Path, typer.Argument(metavar="BASELINE", help="The folder of the bundle.")]


def promote(
    folder: FolderArgument,
    candidate: Annotated[Path, typer.Option(metavar="B.onnx", help="The model to store.")],
    inputs: Annotated[
        Path | None,
        typer.Option(
            help="An .npz file of samples, with 'labels' if accuracy counts. [the present baseline's, or random]"
        ),
    ] = None,
    gate: Annotated[
        Path | None,
        typer.Option(metavar="GATE.json", help="The gate's result, which must be a PASS of this candidate."),
    ] = None,
    accept_regression: Annotated[
        str | None, typer.Option(metavar="REASON", help="Promote without a PASS; the reason stays in the history.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Store CANDIDATE as the new baseline: the model, samples, its outputs on them, and how it came to be.

    Nothing else ever writes a baseline. A first one needs no gate.
    """
    from lrd_deploy.cli.console import show
    from lrd_deploy.gate.promote import promote as promote_candidate
    from lrd_deploy.records import GateResult
    from lrd_deploy.report.gate_terminal import baseline_table

    result = GateResult.read(gate) if gate else None
    bundle = promote_candidate(folder, candidate, inputs=inputs, result=result, reason=accept_regression)
    show(bundle.manifest, baseline_table(bundle.manifest, str(folder)), as_json=as_json)


def history(
    folder: FolderArgument,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Draw the trend as well.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Print every promotion of a baseline, and what single steps have added up to."""
    from lrd_deploy.cli.console import show
    from lrd_deploy.files import write_text
    from lrd_deploy.gate.baseline import read_baseline
    from lrd_deploy.records import BaselineHistory
    from lrd_deploy.report.trend import trend_table
    from lrd_deploy.report.trend_figure import trend

    if plot:
        check_svg(plot, "drawing the trend")
    promotions = read_baseline(folder).history
    if plot:
        write_text(plot, trend(promotions))
    show(BaselineHistory(promotions=promotions), trend_table(promotions), as_json=as_json)
