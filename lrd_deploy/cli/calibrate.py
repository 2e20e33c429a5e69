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
    device: Annotated[
        str | None,
        typer.Option(metavar="cpu|cuda[:N]", help="Where layers run, instead of what the recipe's 'bench' says."),
    ] = None,
    shard: Annotated[str, typer.Option(metavar="I/N", help="Only every N-th layer, from the I-th on.")] = "1/1",
    as_json: JsonOption = False,
) -> None:
    """Time a model's layers in every form, for plans made anywhere with --table.

    The weights do not matter, so nothing is trained. Tables of several machines or shards merge: pass them all.
    """
    from lrd_deploy.cli.console import ConsoleObserver, show
    from lrd_deploy.cli.recipe_argument import recipe_of
    from lrd_deploy.cli.written import Written
    from lrd_deploy.pipeline.calibrating import Shard, calibrate_latency, on_device
    from lrd_deploy.report.terminal import calibration_table

    part, stored = Shard.parse(shard), recipe_of(recipe)
    wanted = stored.recipe if device is None else on_device(stored.recipe, device)
    with ConsoleObserver() as observer:
        done = calibrate_latency(wanted, stored.recipe_folder, table, observer, work=work, shard=part)
    show(done, calibration_table(done), as_json=as_json, wrote=[Written(table)])


def ranges(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="A float32 ONNX file.")],
    data: Annotated[Path, typer.Option(help="An .npz file of real inputs by name; a few hundred samples are enough.")],
    method: Annotated[
        Literal["minmax", "percentile", "entropy"],
        typer.Option(help="The largest magnitude seen, a percentile of all, or where clipping loses least."),
    ] = "entropy",
    percentile: Annotated[
        float | None, typer.Option(help="With --method percentile: of the magnitudes that are not clipped. [99.99]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where they go. [calibration/MODEL.METHOD.json]", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how large a model's values become, for INT8 made anywhere with --ranges."""
    from lrd_deploy.cli.console import show
    from lrd_deploy.cli.written import Written
    from lrd_deploy.pipeline.onnx_samples import samples_of
    from lrd_deploy.pipeline.precision_evidence import PERCENTILE, measure_ranges
    from lrd_deploy.records import CalibratedRanges
    from lrd_deploy.report.precision import ranges_table

    _check_percentile(method, percentile)
    target = out or Path("calibration", f"{model.stem}.{method}.json")
    found = measure_ranges(model, samples_of(model, data), method, PERCENTILE if percentile is None else percentile)
    found.write(target)
    done = CalibratedRanges(
        path=target,
        model_sha256=found.model_sha256,
        method=found.method,
        samples=found.samples,
        values=len(found.magnitudes),
        not_clipped=found.not_clipped,
    )
    show(done, ranges_table(done), as_json=as_json, wrote=[Written(target)])


def _check_percentile(method: str, percentile: float | None) -> None:
    from lrd_deploy.errors import UsageError

    if percentile is not None and (method != "percentile" or not 50 < percentile <= 100):
        raise UsageError(
            "measuring ranges",
            found=f"--percentile {percentile:g} with --method {method}",
            accepted="above 50 and at most 100, with --method percentile",
            remedy="correct the options",
        )
