"""What a conversion goes by: samples, the ranges measured on them, and what FP16 does not hold of a graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from lrd_deploy.engines.backend import Arrays
from lrd_deploy.engines.onnx_ranges import half_problems, onnx_magnitudes
from lrd_deploy.errors import InputError, UsageError
from lrd_deploy.export.onnx_file import graph_inputs, read_model
from lrd_deploy.export.tensor_data import tensor_values
from lrd_deploy.files import sha256_of
from lrd_deploy.pipeline.onnx_samples import Samples, check_enough
from lrd_deploy.precision.mark import check_unconverted
from lrd_deploy.precision.quantize import quantisable, values_to_measure
from lrd_deploy.precision.rounding import HalfRounding
from lrd_deploy.precision.values import GraphValues
from lrd_deploy.records import ActivationRanges, PrecisionPolicy, RangeMethod
from lrd_deploy.rewrite.apply import apply_rules
from lrd_deploy.rewrite.fold_batchnorm import FoldBatchNorm

PERCENTILE = 99.99


@dataclass(frozen=True)
class Evidence:
    """What a conversion may look at: samples, and ranges that were measured on such; either may be absent."""

    samples: Samples | None = None
    ranges: ActivationRanges | None = None


def evidence_for(
    source: Path, policy: PrecisionPolicy, samples: Samples | None, ranges: ActivationRanges | None
) -> Evidence:
    """Returns what there is, and for INT8 without ranges those measured on the samples by the policy's method."""
    wants_ranges = policy.precision == "int8" and ranges is None and samples is not None
    if wants_ranges and check_unconverted(read_model(source), policy) is None:
        ranges = measure_ranges(source, samples, policy.method)
    return Evidence(samples, ranges)


def measure_ranges(
    source: Path, samples: Samples, method: RangeMethod, percentile: float = PERCENTILE
) -> ActivationRanges:
    """Returns the ranges of all values that INT8 would quantise in a file.

    Args:
        source: a float32 ONNX file.
        samples: real inputs; those held out are not used.
        method: how magnitudes are chosen.
        percentile: of the method of that name.

    Raises:
        InputError: the model is invalid, has nothing to quantise, or the samples do not fit it or are too few.
        BackendError: ONNX Runtime refuses the model.
    """
    model, _ = prepared(read_model(source))
    values = values_to_measure(model)
    if not values:
        raise nothing_to_convert(source, "int8", [*quantisable(model)[1].values()])
    check_enough(samples, f"measuring ranges for '{source}'")
    batches = fitting(model, samples.calibration)
    magnitudes, not_clipped = onnx_magnitudes(model, values, batches, method, percentile)
    return ActivationRanges(
        model_sha256=sha256_of(source),
        method=method,
        percentile=percentile if method == "percentile" else None,
        samples=samples.calibration_count,
        source=samples.source,
        magnitudes=magnitudes,
        not_clipped=not_clipped,
    )


def prepared(model: ModelProto) -> tuple[ModelProto, tuple[str, ...]]:
    """Returns the model with its normalisations folded, and their names."""
    folded, applied, _ = apply_rules(model, [FoldBatchNorm()])
    return folded, tuple(entry.node for entry in applied)


def fitting(model: ModelProto, batches: Sequence[Arrays]) -> list[Arrays]:
    """Returns batches without arrays that are no input of the model, such as labels, where every input is there."""
    names = [tensor.name for tensor in graph_inputs(model)]
    return [
        {name: batch[name] for name in names} if all(name in batch for name in names) else batch for batch in batches
    ]


def fitting_magnitudes(source: Path, model: ModelProto, ranges: ActivationRanges | None) -> Mapping[str, float]:
    """Returns the ranges by value.

    Raises:
        UsageError: there are none.
        InputError: they are of another file.
    """
    if ranges is None:
        raise UsageError(
            f"converting '{source}' to INT8",
            found="no ranges",
            accepted="ranges by 'lrd-deploy calibrate ranges', or samples to measure them on",
            remedy="pass --ranges FILE, or --calibration-data X.npz",
        )
    missing = next((name for name in values_to_measure(model) if name not in ranges.magnitudes), None)
    digest = sha256_of(source)
    if ranges.model_sha256 != digest or missing is not None:
        other = f"ranges measured on another file, {ranges.model_sha256[:16]}…"
        raise InputError(
            f"converting '{source}' to INT8",
            found=other if ranges.model_sha256 != digest else f"ranges without the value '{missing}'",
            accepted=f"ranges of this very file, {digest[:16]}…",
            remedy=f"run: lrd-deploy calibrate ranges {source} --data X.npz",
        )
    return ranges.magnitudes


def out_of_range(model: ModelProto, samples: Samples | None) -> dict[int, str]:
    """Returns reasons for the nodes that touch what FP16 does not hold: constants, and values on the samples."""
    values = GraphValues.of(model)
    problems = {}
    for name, tensor in values.constants.items():
        if values.is_float(name):
            rounding = HalfRounding()
            rounding.update(tensor_values(tensor))
            problems[name] = rounding.problem()
    if samples is not None:
        problems |= half_problems(model, list(_float_values(model, values)), fitting(model, samples.calibration))
    return {
        place: f"the value '{name}' {problems[name]}"
        for place, node in enumerate(model.graph.node)
        for name in (*node.input, *node.output)
        if problems.get(name)
    }


def _float_values(model: ModelProto, values: GraphValues) -> Iterator[str]:
    """Every float32 value of the graph itself that is no constant."""
    given = [tensor.name for tensor in graph_inputs(model)]
    computed = [name for node in model.graph.node for name in node.output if name]
    yield from (name for name in (*given, *computed) if values.is_float(name) and name not in values.constants)


def nothing_to_convert(source: Path, precision: str, reasons: Sequence[str] = ()) -> InputError:
    """Returns the error for a graph in which every node stays as it is."""
    return InputError(
        f"converting '{source}' to {precision.upper()}",
        found=reasons[0] if reasons else "no node that handles float32 values",
        accepted="a float32 graph with at least one node to convert",
        remedy="take the float32 model, and keep fewer nodes",
    )
