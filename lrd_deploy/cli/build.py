"""`lrd-deploy build`."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lrd_deploy.cli.convert import CalibrationOption, KeepOption, RangesOption
from lrd_deploy.cli.recipe_argument import JsonOption

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lrd_deploy.engines.backend import TimingCache
    from lrd_deploy.engines.building import Converted

_OUTPUT = "Where the engine goes; its manifest and log go beside it."
_DIM = "Sizes of another dynamic dimension: NAME=MIN:OPT:MAX, NAME=SIZE, INPUT[AXIS]=…; may be repeated."
_COMPATIBLE = "An engine that newer TensorRT of the same major loads too."

PrecisionOption = Annotated[
    Literal["fp16", "bf16", "int8"] | None,
    typer.Option(help="Convert the graph first, as 'convert' does. [as the file is]"),
]
PerBatch = Annotated[str | None, typer.Option(help="One engine for each batch, that size built in, such as 1,8,32.")]
Capability = Annotated[
    list[str] | None, typer.Option(help="GPU generation for tensorrt-rtx, such as 8.6; may be repeated.")
]
TimingCacheOption = Annotated[
    Path | None, typer.Option(help="Keep TensorRT's timings: a file that ends in .cache, or a folder.")
]
NoNewTimings = Annotated[bool, typer.Option("--no-new-timings", help="Fail where the timing cache lacks one.")]


def build(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx")],
    output: Annotated[Path, typer.Option("-o", "--output", help=_OUTPUT)],
    backend: Annotated[str, typer.Option(help="onnxruntime, tensorrt or tensorrt-rtx.")] = "onnxruntime",
    min_batch: Annotated[int | None, typer.Option(min=1, help="[1]")] = None,
    opt_batch: Annotated[int | None, typer.Option(min=1, help="The batch that kernels are tuned for. [8]")] = None,
    max_batch: Annotated[int | None, typer.Option(min=1, help="[64]")] = None,
    per_batch: PerBatch = None,
    dim: Annotated[list[str] | None, typer.Option(help=_DIM)] = None,
    compute_capability: Capability = None,
    tf32: Annotated[bool, typer.Option("--tf32/--no-tf32", help="May float32 products be rounded to TF32?")] = True,
    version_compatible: Annotated[bool, typer.Option("--version-compatible", help=_COMPATIBLE)] = False,
    refittable: Annotated[bool, typer.Option("--refittable", help="An engine whose weights can be exchanged.")] = False,
    timing_cache: TimingCacheOption = None,
    no_new_timings: NoNewTimings = False,
    precision: PrecisionOption = None,
    calibration_data: CalibrationOption = None,
    ranges: RangesOption = None,
    keep: KeepOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build an engine from an ONNX file. TensorRT-RTX compiles for named GPUs on a machine that has none."""
    from lrd_deploy.cli.console import show
    from lrd_deploy.cli.written import placed_engine, written_engine
    from lrd_deploy.engines import BuildSettings
    from lrd_deploy.engines.building import build_engine, build_per_batch, refuse_unused
    from lrd_deploy.engines.profile import batch_range, parse_batches, parse_dimensions
    from lrd_deploy.records import EngineSet
    from lrd_deploy.report.engine import engines_table

    batches = parse_batches(per_batch) if per_batch is not None else ()
    settings = BuildSettings(
        **batch_range(min_batch, opt_batch, max_batch, per_batch=batches),
        dimensions=parse_dimensions(dim or ()),
        compute_capabilities=tuple(compute_capability or ()),
        tf32=tf32,
        version_compatible=version_compatible,
        refittable=refittable,
        timing_cache=_timing_cache(timing_cache, no_new_timings=no_new_timings),
    )
    if backend == "onnxruntime":
        refuse_unused(settings, batches)
    how = {"calibration_data": calibration_data, "ranges": ranges, "keep": tuple(keep or ())}
    with _graph_in(precision, model, backend, how) as (graph, origin):
        if batches:
            built = build_per_batch(backend, graph, output, settings, batches, origin)
        else:
            built = (build_engine(backend, graph, output, settings, origin),)
    engines = tuple(placed_engine(engine, output.parent) for engine in built)
    result = EngineSet(engines=engines) if batches else engines[0]
    wrote = [written_engine(engine.path) for engine in engines]
    show(result, engines_table(engines), as_json=as_json, wrote=wrote)


@contextmanager
def _graph_in(
    precision: str | None, model: Path, backend: str, how: dict[str, Any]
) -> Iterator[tuple[Path, Converted | None]]:
    """Yields the graph to build from, and where it came from if that is a copy in another precision."""
    from tempfile import TemporaryDirectory

    from lrd_deploy.cli.convert import converted
    from lrd_deploy.engines import builder
    from lrd_deploy.engines.building import Converted

    if precision is None:
        _refuse_without_precision({f"--{name.replace('_', '-')}": value for name, value in how.items()})
        yield model, None
        return
    builder(backend)  # an unknown one is told before minutes of conversion
    activations = "uint8" if backend == "onnxruntime" and precision == "int8" else None
    int8 = {"ranges": how["ranges"], "method": None, "activation_type": activations}
    with TemporaryDirectory(prefix="lrd-deploy-") as folder:
        graph = Path(folder, model.name)
        report = converted(model, graph, precision, how["calibration_data"], how["keep"], int8)
        yield graph, Converted(model, report)


def _timing_cache(path: Path | None, *, no_new_timings: bool) -> TimingCache | None:
    from lrd_deploy.engines.backend import TimingCache
    from lrd_deploy.errors import UsageError

    if path is None and no_new_timings:
        raise UsageError(
            "choosing the timing cache",
            found="--no-new-timings without --timing-cache",
            accepted="a cache that an earlier build filled",
            remedy="name it with --timing-cache",
        )
    return TimingCache(path=path, miss_is_error=no_new_timings) if path is not None else None


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
