"""`lrd-deploy bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrd_deploy.cli.recipe_argument import JsonOption

if TYPE_CHECKING:
    from lrd_deploy.recipe.settings import Bench
    from lrd_deploy.records import Comparison

Device = Annotated[str, typer.Option(metavar="cpu|cuda[:N]", help="Where both models run.")]
IoBinding = Annotated[
    bool | None,
    typer.Option("--io-binding/--no-io-binding", help="Inputs and outputs stay on the device. [on a GPU]"),
]
CudaGraph = Annotated[bool, typer.Option("--cuda-graph", help="Record the GPU's work once, and replay it.")]
Tf32 = Annotated[bool | None, typer.Option("--tf32/--no-tf32", help="TF32 for float32 products. [on a GPU]")]
Samples = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Gets every launch's raw samples as it ends, as JSON lines.")
]
Judge = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Instead: what the finished launches of --samples FILE say.")
]


def bench(
    base: Annotated[Path | None, typer.Argument(metavar="BASE.onnx")] = None,
    candidate: Annotated[Path | None, typer.Argument(metavar="CANDIDATE.onnx")] = None,
    batch: Annotated[int, typer.Option(min=1)] = 8,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="4 launches instead of 8: a wider interval, sooner.")] = False,
    inputs: Annotated[Path | None, typer.Option(help="An .npz file of real inputs by name. [random]")] = None,
    device: Device = "cpu",
    io_binding: IoBinding = None,
    cuda_graph: CudaGraph = False,
    tf32: Tf32 = None,
    samples: Samples = None,
    judge: Judge = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how much faster CANDIDATE is than BASE, in interleaved blocks, fresh processes, with a control."""
    from lrd_deploy.bench.compare import judge_samples
    from lrd_deploy.cli.console import show
    from lrd_deploy.recipe.settings import Bench
    from lrd_deploy.records import Execution
    from lrd_deploy.report.terminal import comparison_table

    if judge:
        _refuse_beside_judge({"BASE.onnx": base, "CANDIDATE.onnx": candidate, "--inputs": inputs, "--samples": samples})
        comparison = judge_samples(judge)
    else:
        Execution.on(device, io_binding=io_binding, cuda_graph=cuda_graph, tf32=tf32)  # refused before anything is read
        where = {"device": device, "io_binding": io_binding, "cuda_graph": cuda_graph, "tf32": tf32}
        settings = Bench(batch=batch, threads=threads, launches=4 if quick else 8, **where)
        models = _given(base, "BASE.onnx"), _given(candidate, "CANDIDATE.onnx")
        comparison = _measured(models, inputs, settings, samples)
    show(comparison, comparison_table(comparison), as_json=as_json)


def _measured(models: tuple[Path, Path], inputs: Path | None, settings: Bench, samples: Path | None) -> Comparison:
    from lrd_deploy.bench.compare import compare
    from lrd_deploy.bench.samples_file import SamplesFile
    from lrd_deploy.cli.console import ConsoleObserver
    from lrd_deploy.engines.execution_provider import check_device
    from lrd_deploy.engines.timed_inputs import timed_batch
    from lrd_deploy.engines.verify import check_same_inputs
    from lrd_deploy.export.onnx_file import read_model
    from lrd_deploy.precision.mark import precision_differences

    check_device(settings.execution)
    graphs = read_model(models[0]), read_model(models[1])
    check_same_inputs(*graphs)
    arrays = timed_batch(models[0], settings.batch, inputs)
    told = precision_differences(graphs, ("base", "candidate"))
    with ConsoleObserver() as observer:
        keep = SamplesFile(samples) if samples else None
        return compare(*models, arrays, settings, observer, keep, told)[0]


def _refuse_beside_judge(others: dict[str, Path | None]) -> None:
    from lrd_deploy.errors import UsageError

    given = [name for name, value in others.items() if value is not None]
    if given:
        raise UsageError(
            "reading the options beside --judge",
            found=", ".join(given),
            accepted="--judge without them: nothing is measured",
            remedy=f"leave out {given[0]}, or --judge",
        )


def _given(path: Path | None, argument: str) -> Path:
    if path is None:
        raise typer.BadParameter("is needed here", param_hint=f"'{argument}'")
    return path
