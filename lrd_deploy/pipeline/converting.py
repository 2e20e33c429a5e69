"""An ONNX file in another precision: normalisations folded, what must stay float32 found on data, outputs compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto

from lrd_deploy.engines import SessionSettings, runtime
from lrd_deploy.engines.backend import Arrays
from lrd_deploy.engines.difference import answers, compare_outputs
from lrd_deploy.engines.precision_noise import explained_difference
from lrd_deploy.errors import BackendError, InputError, UsageError
from lrd_deploy.export.onnx_file import default_opset, read_model, write_model
from lrd_deploy.export.skeleton import infer_shapes_
from lrd_deploy.export.tensor_data import tensor_values
from lrd_deploy.files import sha256_of, write_with_companions
from lrd_deploy.pipeline.precision_evidence import (
    Evidence,
    fitting,
    fitting_magnitudes,
    nothing_to_convert,
    out_of_range,
    prepared,
)
from lrd_deploy.precision.conversion import Conversion
from lrd_deploy.precision.half import to_half
from lrd_deploy.precision.mark import check_unconverted, set_mark_
from lrd_deploy.precision.opset import LEAST, raised
from lrd_deploy.precision.quantize import to_int8
from lrd_deploy.precision.share import converted_share
from lrd_deploy.precision.values import GraphValues, node_title
from lrd_deploy.records import (
    OutputDifference,
    PrecisionPolicy,
    PrecisionReport,
    Skipped,
)


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
    folded, normalisations = prepared(original)
    model = raised(folded, policy.precision)
    _check_constants(source, model)
    conversion = _converted(source, model, policy, evidence)
    if not conversion.converted:
        raise nothing_to_convert(source, policy.precision, [*conversion.kept.values()])
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

    write_with_companions(target, write_and_compare)
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


def _report(source_sha256: str, target: Path, policy: PrecisionPolicy, **found: object) -> PrecisionReport:
    known = {"path": Path(target.name), "sha256": sha256_of(target), "source_sha256": source_sha256}
    return PrecisionReport(**known, policy=policy, **found)


def _converted(source: Path, model: ModelProto, policy: PrecisionPolicy, evidence: Evidence) -> Conversion:
    keep = _named(model, policy.keep)
    if policy.precision == "int8":
        magnitudes = fitting_magnitudes(source, model, evidence.ranges)
        return to_int8(model, magnitudes, policy.activation_type, keep)
    if policy.precision == "fp16":
        keep = {**out_of_range(model, evidence.samples), **keep}
    return to_half(model, policy.precision, keep)


def _check_constants(source: Path, model: ModelProto) -> None:
    """Infinities may be meant, as in masks; NaN never is."""
    for name, tensor in GraphValues.of(model).constants.items():
        if tensor.data_type == TensorProto.FLOAT and np.isnan(tensor_values(tensor)).any():
            raise InputError(
                f"converting '{source}'",
                found=f"NaN in the constant '{name}'",
                accepted="weights that are numbers",
                remedy="look for the step of the training that diverged",
            )


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


def _finished(model: ModelProto, precision: str) -> ModelProto:
    """The converted graph, in place, with its types inferred anew.

    Raises:
        InputError: they contradict each other.
    """
    try:
        infer_shapes_(model)
    except InputError as exc:
        raise InputError(
            f"converting '{model.graph.name}' to {precision.upper()}",
            found=exc.found,
            accepted="a graph whose types fit together after the conversion",
            remedy="report this with the model; --keep NAME leaves the node that it names in float32",
        ) from exc
    return model


def _difference(
    source: Path, target: Path, models: tuple[ModelProto, ModelProto], batches: Sequence[Arrays], notes: list[str]
) -> Iterator[OutputDifference]:
    """Of the outputs on these batches; a note where ONNX Runtime has no kernels for the result."""
    backend = runtime("onnxruntime")
    reference = answers(backend.load(source, SessionSettings()).run, batches)
    try:
        candidate = backend.load(target, SessionSettings())
    except BackendError as refusal:
        found = refusal.found.replace(str(target), "the result")
        notes.append(f"outputs were not compared: {found[:200]}")
        return
    yield compare_outputs(reference, candidate.run, batches, explained_difference(*models))


def _opset_note(model: ModelProto, policy: PrecisionPolicy) -> Iterator[str]:
    if default_opset(model) < LEAST[policy.precision]:
        yield f"the opset was raised from {default_opset(model)} to {LEAST[policy.precision]}"


def _evidence_note(policy: PrecisionPolicy, evidence: Evidence) -> Iterator[str]:
    if evidence.samples is None:
        looked = "; of overflow only weights were looked at" if policy.precision == "fp16" else ""
        yield f"no samples: outputs were not compared{looked}"
    if policy.precision == "int8":
        yield f"ranges by {evidence.ranges.method} on {evidence.ranges.samples} samples of {evidence.ranges.source}"
        if unclipped := evidence.ranges.not_clipped:
            yield f"{len(unclipped)} ranges are the largest magnitude: too few values of {', '.join(unclipped)}"
