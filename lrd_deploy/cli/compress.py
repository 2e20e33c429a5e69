"""`lrd-deploy compress`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lrd_deploy.cli.goal import latency_goal
from lrd_deploy.cli.recipe_argument import JsonOption, SizeOption, TableOption


def compress(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="Any trained ONNX file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the result goes.")],
    target_speedup: Annotated[float | None, typer.Option(help="How much faster, with the least error. [2]")] = None,
    max_error: Annotated[
        float | None, typer.Option(help="Or: as fast as it gets with outputs within this relative L2 difference.")
    ] = None,
    calibration_data: Annotated[
        Path | None,
        typer.Option(help="An .npz file of real inputs by name; a quarter is held out to judge on. [random inputs]"),
    ] = None,
    quantum: Annotated[
        int | None, typer.Option(min=1, help="Ranks become multiples of this. [found by timing]")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="The deployed batch. [8, or what the model fixes]")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="The deployed threads. [1]")] = None,
    dim: SizeOption = None,
    table: TableOption = None,
    folder: Annotated[
        Path | None, typer.Option(help="Keeps the latencies that were measured, for the next call. [runs/MODEL]")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="4 launches instead of 8: a wider interval, sooner.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a trained ONNX file faster without training it: factors by measured latency, biases corrected."""
    from lrd_deploy.cli.console import ConsoleObserver, show
    from lrd_deploy.cli.written import placed_model, written_model
    from lrd_deploy.engines.profile import parse_dimensions
    from lrd_deploy.export.onnx_file import graph_inputs, read_model
    from lrd_deploy.pipeline.compressing import compress as compress_file
    from lrd_deploy.pipeline.compressing import measuring_here
    from lrd_deploy.pipeline.onnx_bench import deployed_bench
    from lrd_deploy.pipeline.onnx_samples import random_samples, refuse_sizes_beside_data, stored_samples
    from lrd_deploy.report.compression import compression_table

    goal = latency_goal(model, target_speedup=target_speedup, max_error=max_error, quantum=quantum)
    graph = read_model(model)
    bench = deployed_bench(graph, batch, threads, launches=4 if quick else 8)
    sizes = parse_dimensions(dim or (), ranges=False)
    refuse_sizes_beside_data(sizes, calibration_data)
    if calibration_data:
        samples = stored_samples(calibration_data, bench.batch, graph_inputs(graph))
    else:
        samples = random_samples(model, bench.batch, sizes)
    kept = folder or Path("runs", model.stem)
    with ConsoleObserver() as observer:
        inputs, store = samples.held_out[0], kept / "latency.jsonl"
        measuring = measuring_here(model, inputs, bench, store, table or (), observer)
        done = compress_file(model, output, goal, samples, measuring, observer)
    wrote = written_model(output)
    show(placed_model(done, wrote), compression_table(done), as_json=as_json, wrote=[wrote])
