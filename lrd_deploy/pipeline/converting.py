"""An ONNX file in another precision: normalisations folded, what must stay float32 found on data, outputs compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import onnx
from onnx import ModelProto, numpy_helper

from lrd_deploy.engines import SessionSettings, runtime
from lrd_deploy.engines.backend import Arrays
from lrd_deploy.engines.difference import compare_outputs
from lrd_deploy.engines.onnx_ranges import half_problems, onnx_magnitudes
from lrd_deploy.engines.precision_noise import explained_difference
from lrd_deploy.errors import BackendError, InputError, UsageError
from lrd_deploy.export.onnx_file import default_opset, graph_inputs, read_model, write_model
from lrd_deploy.files import sha256_of, write_whole
from lrd_deploy.pipeline.onnx_samples import Samples
from lrd_deploy.precision.conversion import Conversion
from lrd_deploy.precision.half import to_half
from lrd_deploy.precision.mark import check_unconverted, set_mark_
from lrd_deploy.precision.opset import LEAST, raised
from lrd_deploy.precision.quantize import quantisable, to_int8, values_to_measure
from lrd_deploy.precision.rounding import HalfRounding
from lrd_deploy.precision.share import converted_share
from lrd_deploy.precision.values import GraphValues, node_title
from lrd_deploy.records import (
    ActivationRanges,
    OutputDifference,
    PrecisionPolicy,
    PrecisionReport,
    RangeMethod,
    Skipped,
)
from lrd_deploy.rewrite.apply import apply_rules
from lrd_deploy.rewrite.fold_batchnorm import FoldBatchNorm

FEWEST_SAMPLES = 8
PERCENTILE = 99.99


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
    model, _ = _prepared(read_model(source))
    values = values_to_measure(model)
    if not values:
        raise _nothing(source, "int8", [*quantisable(model)[1].values()])
    if samples.calibration_count < FEWEST_SAMPLES:
        raise InputError(
            f"measuring ranges for '{source}'",
            found=f"{samples.calibration_count} samples to calibrate by",
            accepted=f"at least {FEWEST_SAMPLES}",
            remedy="store more samples; a few hundred are enough",
        )
    batches = fitting(model, samples.calibration)
    return ActivationRanges(
        model_sha256=sha256_of(source),
        method=method,
        percentile=percentile if method == "percentile" else None,
        samples=samples.calibration_count,
        source=samples.source,
        magnitudes=onnx_magnitudes(model, values, batches, method, percentile),
    )


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


def convert_model(source: Path, target: Path, policy: PrecisionPolicy, evidence: Evidence) -> PrecisionReport:
    """Writes a file in another precision, and says what was converted, what was not, and how far the outputs moved.

    Args:
        source: a float32 ONNX file.
        target: gets the result, whole or not at all.
        policy: the precision, and what stays in float32 whatever the data says.
        evidence: INT8 needs ranges; FP16 finds on samples what it does not hold, and without them looks at weights.

    Raises:
        InputError: the model is invalid, was converted before, or has nothing to convert; ranges of another file.
        UsageError: INT8 without ranges.
        BackendError: ONNX Runtime refuses the float32 model.
        StorageError: a file cannot be read or written.
    """
    original, digest = read_model(source), sha256_of(source)  # the target may be the source
    mark = check_unconverted(original, policy)
    if mark is not None:
        write_model(original, target)
        notes = ("it was converted by this policy before, and is left as it was",)
        return _report(digest, target, policy, share=mark.share, modified=False, kept=(), notes=notes)
    folded, normalisations = _prepared(original)
    model = raised(folded, policy.precision)
    conversion = _converted(source, model, policy, evidence)
    if not conversion.converted:
        raise _nothing(source, policy.precision, [*conversion.kept.values()])
    share = converted_share(model, conversion.converted, len(conversion.converted) + len(conversion.kept))
    finished = _finished(conversion.model, policy.precision)
    set_mark_(finished, policy, share)
    notes = [*_opset_note(folded, policy), *_evidence_note(policy, evidence)]
    differences: list[OutputDifference] = []

    def write_and_compare(temporary: Path) -> None:
        write_model(finished, temporary)
        if evidence.samples is not None:
            batches = fitting(original, evidence.samples.held_out)
            differences.extend(_difference(source, temporary, (original, finished), batches, notes))

    write_whole(target, write_and_compare)
    found = {"kept": _left_out(model, conversion, policy), "folded": normalisations, "notes": tuple(notes)}
    return _report(
        digest, target, policy, share=share, modified=True, difference=next(iter(differences), None), **found
    )


def _left_out(model: ModelProto, conversion: Conversion, policy: PrecisionPolicy) -> tuple[Skipped, ...]:
    """The nodes that stay in float32, in the graph's order."""
    return tuple(
        Skipped(rule=policy.precision, node=node_title(model.graph.node[place]), reason=reason)
        for place, reason in sorted(conversion.kept.items())
    )


def fitting(model: ModelProto, batches: Sequence[Arrays]) -> list[Arrays]:
    """Returns batches without arrays that are no input of the model, such as labels, where every input is there."""
    names = [tensor.name for tensor in graph_inputs(model)]
    return [
        {name: batch[name] for name in names} if all(name in batch for name in names) else batch for batch in batches
    ]


def _report(source_sha256: str, target: Path, policy: PrecisionPolicy, **found: object) -> PrecisionReport:
    known = {"path": Path(target.name), "sha256": sha256_of(target), "source_sha256": source_sha256}
    return PrecisionReport(**known, policy=policy, **found)


def _prepared(model: ModelProto) -> tuple[ModelProto, tuple[str, ...]]:
    """The model with its normalisations folded, and their names."""
    folded, applied, _ = apply_rules(model, [FoldBatchNorm()])
    return folded, tuple(entry.node for entry in applied)


def _converted(source: Path, model: ModelProto, policy: PrecisionPolicy, evidence: Evidence) -> Conversion:
    keep = _named(model, policy.keep)
    if policy.precision == "int8":
        magnitudes = _magnitudes(source, model, evidence.ranges)
        return to_int8(model, magnitudes, policy.activation_type, keep)
    if policy.precision == "fp16":
        keep = {**_out_of_range(model, evidence.samples), **keep}
    return to_half(model, policy.precision, keep)


def _named(model: ModelProto, patterns: Sequence[str]) -> dict[int, str]:
    """Reasons for the nodes that the policy keeps."""
    kept, used = {}, set()
    for place, node in enumerate(model.graph.node):
        pattern = next((pattern for pattern in patterns if fnmatchcase(node_title(node), pattern)), None)
        if pattern is not None:
            kept[place] = f"it is kept by --keep '{pattern}'"
            used.add(pattern)
    unused = [pattern for pattern in patterns if pattern not in used]
    if unused:
        raise UsageError(
            "choosing what stays in float32",
            found=f"--keep '{unused[0]}', which no node's name matches",
            accepted=f"a pattern such as '{node_title(model.graph.node[0])}'",
            remedy="correct the pattern, or leave it out",
        )
    return kept


def _magnitudes(source: Path, model: ModelProto, ranges: ActivationRanges | None) -> Mapping[str, float]:
    """The ranges, where they are this file's and complete."""
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


def _out_of_range(model: ModelProto, samples: Samples | None) -> dict[int, str]:
    """Reasons for the nodes that touch what FP16 does not hold: constants, and values on the samples."""
    values = GraphValues.of(model)
    problems = {}
    for name, tensor in values.constants.items():
        if values.is_float(name):
            rounding = HalfRounding()
            rounding.update(numpy_helper.to_array(tensor))
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


def _finished(model: ModelProto, precision: str) -> ModelProto:
    """The converted graph with its types inferred anew.

    Raises:
        InputError: they contradict each other.
    """
    try:
        return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError as exc:
        raise InputError(
            f"converting '{model.graph.name}' to {precision.upper()}",
            found=" ".join(str(exc).split())[:400],
            accepted="a graph whose types fit together after the conversion",
            remedy="report this with the model; --keep NAME leaves the node that it names in float32",
        ) from exc


def _difference(
    source: Path, target: Path, models: tuple[ModelProto, ModelProto], batches: Sequence[Arrays], notes: list[str]
) -> Iterator[OutputDifference]:
    """Of the outputs on these batches; a note where ONNX Runtime has no kernels for the result."""
    backend = runtime("onnxruntime")
    reference = backend.load(source, SessionSettings())
    try:
        candidate = backend.load(target, SessionSettings())
    except BackendError as refusal:
        notes.append(f"outputs were not compared: {refusal.found[:200]}")
        return
    yield compare_outputs(reference.run, candidate.run, batches, explained_difference(*models))


def _opset_note(model: ModelProto, policy: PrecisionPolicy) -> Iterator[str]:
    if default_opset(model) < LEAST[policy.precision]:
        yield f"the opset was raised from {default_opset(model)} to {LEAST[policy.precision]}"


def _evidence_note(policy: PrecisionPolicy, evidence: Evidence) -> Iterator[str]:
    if evidence.samples is None:
        looked = "; of overflow only weights were looked at" if policy.precision == "fp16" else ""
        yield f"no samples: outputs were not compared{looked}"
    if policy.precision == "int8":
        yield f"ranges by {evidence.ranges.method} on {evidence.ranges.samples} samples of {evidence.ranges.source}"


def _nothing(source: Path, precision: str, reasons: Sequence[str] = ()) -> InputError:
    return InputError(
        f"converting '{source}' to {precision.upper()}",
        found=reasons[0] if reasons else "no node that handles float32 values",
        accepted="a float32 graph with at least one node to convert",
        remedy="take the float32 model, and keep fewer nodes",
    )
