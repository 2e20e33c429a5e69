"""`lrd-deploy build`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lrd_deploy.cli.recipe_argument import JsonOption


def build(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the engine goes; its manifest goes beside it.")],
    backend: Annotated[str, typer.Option(help="onnxruntime, tensorrt or tensorrt-rtx.")] = "onnxruntime",
    min_batch: Annotated[int, typer.Option(min=1)] = 1,
    opt_batch: Annotated[int, typer.Option(min=1, help="The batch that TensorRT tunes its kernels for.")] = 8,
    max_batch: Annotated[int, typer.Option(min=1)] = 64,
    compute_capability: Annotated[
        list[str] | None, typer.Option(help="GPU generation for tensorrt-rtx, such as 8.6; may be repeated.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Build an engine from an ONNX file. TensorRT-RTX compiles for named GPUs on a machine that has none."""
    from lrd_deploy.cli.console import show
    from lrd_deploy.engines import BuildSettings, builder
    from lrd_deploy.errors import UsageError
    from lrd_deploy.export.onnx_file import read_model
    from lrd_deploy.report.terminal import table

    if not min_batch <= opt_batch <= max_batch:
        raise UsageError(
            "choosing the batches of the engine",
            found=f"min {min_batch}, opt {opt_batch}, max {max_batch}",
            accepted="min ≤ opt ≤ max",
            remedy="correct --min-batch, --opt-batch and --max-batch",
        )
    read_model(model)
    settings = BuildSettings(
        min_batch=min_batch,
        opt_batch=opt_batch,
        max_batch=max_batch,
        compute_capabilities=tuple(compute_capability or ()),
    )
    artifact = builder(backend).build(model, output, settings)
    artifact.write(output.with_name(output.name + ".json"))
    rows = [(name, str(value)) for name, value in artifact.model_dump().items()]
    show(artifact, table(("engine", str(output)), rows), as_json=as_json)
