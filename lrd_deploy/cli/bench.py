"""`lrd-deploy bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lrd_deploy.cli.recipe_argument import JsonOption


def bench(
    base: Annotated[Path, typer.Argument(metavar="BASE.onnx")],
    candidate: Annotated[Path, typer.Argument(metavar="CANDIDATE.onnx")],
    batch: Annotated[int, typer.Option(min=1)] = 8,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="4 launches instead of 8: a wider interval, sooner.")] = False,
    inputs: Annotated[Path | None, typer.Option(help="An .npz file of real inputs by name. [random]")] = None,
    samples: Annotated[Path | None, typer.Option(help="Keep every launch's raw samples here, as JSON lines.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how much faster CANDIDATE is than BASE, in interleaved blocks, fresh processes, with a control."""
    from lrd_deploy.bench.compare import compare
    from lrd_deploy.cli.console import ConsoleObserver, show
    from lrd_deploy.engines.inputs import random_batches, stored_batches
    from lrd_deploy.engines.verify import check_same_inputs
    from lrd_deploy.export.onnx_file import read_model
    from lrd_deploy.files import write_text
    from lrd_deploy.precision.mark import precision_differences
    from lrd_deploy.recipe.settings import Bench
    from lrd_deploy.report.terminal import comparison_table

    models = read_model(base), read_model(candidate)
    check_same_inputs(*models)
    arrays = (stored_batches(inputs, [batch]) if inputs else random_batches(base, [batch]))[0]
    settings = Bench(batch=batch, threads=threads, launches=4 if quick else 8)
    with ConsoleObserver() as observer:
        comparison, launches = compare(base, candidate, arrays, settings, observer)
    told = precision_differences(models, ("base", "candidate"))
    comparison = comparison.model_copy(update={"warnings": (*comparison.warnings, *told)})
    if samples:
        write_text(samples, "".join(launch.model_dump_json() + "\n" for launch in launches))
    show(comparison, comparison_table(comparison), as_json=as_json)
