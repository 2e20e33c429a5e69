"""`lrd-deploy profile`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lrd_deploy.cli.picture_argument import check_svg
from lrd_deploy.cli.recipe_argument import JsonOption


def profile(
    base: Annotated[Path, typer.Argument(metavar="BASE.onnx", help="The dense model, or the only one.")],
    candidate: Annotated[
        Path | None, typer.Argument(metavar="[CANDIDATE.onnx]", help="The low-rank model, joined by node name.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1)] = 8,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    launches: Annotated[int, typer.Option(min=2, help="Fresh processes, which the intervals are over.")] = 6,
    inputs: Annotated[Path | None, typer.Option(help="An .npz file of real inputs by name. [random]")] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="PROFILE.json", help="Keep the record, for 'rewrite --layers-from'."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Draw the layers side by side.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show where the time goes, layer by layer, and which factors are slower than the dense layer they stand for."""
    from lrd_deploy.bench.profile import ProfileSettings
    from lrd_deploy.bench.profile import profile as profile_models
    from lrd_deploy.cli.console import ConsoleObserver, show
    from lrd_deploy.cli.written import Written
    from lrd_deploy.engines.inputs import one_batch
    from lrd_deploy.files import write_text
    from lrd_deploy.report.profile_figure import profile_picture
    from lrd_deploy.report.profile_terminal import profile_table

    if plot:
        check_svg(plot, "drawing the profile")
    arrays = one_batch(base, batch, inputs)
    settings = ProfileSettings(threads=threads, launches=launches)
    with ConsoleObserver() as observer:
        found, _ = profile_models(base, candidate, arrays, settings, observer)
    if output:
        found.write(output)
    if plot:
        write_text(plot, profile_picture(found))
    wrote = [Written(path) for path in (output, plot) if path]
    show(found, profile_table(found, base, candidate, output), as_json=as_json, wrote=wrote)
