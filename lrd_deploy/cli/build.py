"""`lrd-deploy build`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lrd_deploy.cli.convert import CalibrationOption, KeepOption, RangesOption
from lrd_deploy.cli.recipe_argument import JsonOption

if TYPE_CHECKING:
    from lrd_deploy.engines import BuildSettings
    from lrd_deploy.records import EngineArtifact


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
    precision: Annotated[
        Literal["fp16", "bf16", "int8"] | None,
        typer.Option(help="Convert the graph first, as 'convert' does. [as the file is]"),
    ] = None,
    calibration_data: CalibrationOption = None,
    ranges: RangesOption = None,
    keep: KeepOption = None,
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
    if precision is None:
        _refuse_without_precision({"--calibration-data": calibration_data, "--ranges": ranges, "--keep": keep})
        artifact = builder(backend).build(model, output, settings)
    else:
        how = {"calibration_data": calibration_data, "ranges": ranges, "keep": tuple(keep or ())}
        artifact = _build_converted(model, output, backend, settings, precision, how)
    artifact.write(output.with_name(output.name + ".json"))
    rows = [(name, str(value)) for name, value in artifact.model_dump().items()]
    show(artifact, table(("engine", str(output)), rows), as_json=as_json)


def _build_converted(
    model: Path, output: Path, backend: str, settings: BuildSettings, precision: str, how: dict[str, Any]
) -> EngineArtifact:
    """Builds from a converted copy; the record names the file that the user has, and what was converted of it."""
    from tempfile import TemporaryDirectory

    from lrd_deploy.cli.convert import converted
    from lrd_deploy.engines import builder

    chosen = builder(backend)  # an unknown one is told before minutes of conversion
    activations = "uint8" if backend == "onnxruntime" and precision == "int8" else None
    int8 = {"ranges": how["ranges"], "method": None, "activation_type": activations}
    with TemporaryDirectory(prefix="lrd-deploy-") as folder:
        graph = Path(folder, model.name)
        report = converted(model, graph, precision, how["calibration_data"], how["keep"], int8)
        artifact = chosen.build(graph, output, settings)
    changes = {"source_sha256": report.source_sha256, "precision": precision, "converted": report.share}
    return artifact.model_copy(update=changes)


def _refuse_without_precision(given: dict[str, object]) -> None:
    from lrd_deploy.errors import UsageError

    useless = [name for name, value in given.items() if value]
    if useless:
        raise UsageError(
            "building an engine",
            found=f"{useless[0]} without --precision",
            accepted=f"{useless[0]} beside --precision, whose conversion it is for",
            remedy=f"add --precision, or leave out {useless[0]}",
        )
