"""Does a candidate still answer as the reference does?"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lrd_deploy.engines import SessionSettings, runtime
from lrd_deploy.engines.difference import output_difference
from lrd_deploy.engines.inputs import allowed_batches, repeated
from lrd_deploy.engines.precision_noise import explained_difference
from lrd_deploy.errors import InputError
from lrd_deploy.export.onnx_file import graph_inputs, read_model
from lrd_deploy.gate.reference import Outputs, Reference, Samples
from lrd_deploy.records import OutputEvidence

_BATCH = 32


def compare_answers(reference: Reference, candidate: Path) -> OutputEvidence:
    """Runs the candidate on the reference's samples and compares, with labels also both accuracies.

    Outputs that cannot be compared (other shapes, NaN) are evidence too: `refusal` says why.

    Raises:
        InputError: labels do not fit the reference's own outputs.
        BackendError: ONNX Runtime refuses a model.
    """
    samples = reference.samples
    expected = reference.expected or answers(reference.model, samples)
    own = read_model(reference.model)
    tolerance = explained_difference(own, own)  # a candidate of lower precision is a change that must be allowed
    known = {"samples": len(samples), "rounding_tolerance": tolerance}
    accuracy = _accuracy(expected, samples)
    got = answers(candidate, samples)
    if len(got) != len(expected):
        return OutputEvidence(refusal=f"{len(got)} outputs, where the reference has {len(expected)}", **known)
    try:
        difference = output_difference(expected, got, tolerance=tolerance, batches=(len(samples),))
    except InputError as problem:
        return OutputEvidence(refusal=problem.found, **known)
    return OutputEvidence(
        relative_l2=difference.relative_l2,
        top1_agreement=difference.top1_agreement,
        baseline_accuracy=accuracy,
        candidate_accuracy=_accuracy(got, samples),
        **known,
    )


def answers(model: Path, samples: Samples) -> Outputs:
    """Returns a model's outputs on all samples, one array per output in the graph's order."""
    session = runtime("onnxruntime").load(model, SessionSettings())
    (size,) = allowed_batches(graph_inputs(read_model(model)), [min(_BATCH, len(samples))])
    batches = []
    for start in range(0, len(samples), size):
        inputs = {name: repeated(array[start:], size) for name, array in samples.inputs.items()}
        batches.append(tuple(np.asarray(output) for output in session.run(inputs).values()))
    return tuple(_joined(parts, size, len(samples)) for parts in zip(*batches, strict=True))


def _joined(parts: tuple[np.ndarray, ...], size: int, samples: int) -> np.ndarray:
    """All batches in one array, without the samples that filled the last one; outputs without a batch are stacked."""
    if all(part.ndim and len(part) == size for part in parts):
        return np.concatenate(parts)[:samples]
    return np.stack(parts)


def _accuracy(outputs: Outputs, samples: Samples) -> float | None:
    if samples.labels is None:
        return None
    logits = outputs[0]
    if logits.ndim != 2 or len(logits) != len(samples):
        raise InputError(
            "comparing answers with labels",
            found=f"a first output of shape {logits.shape} for {len(samples)} labels",
            accepted="(samples, classes)",
            remedy="leave 'labels' out of the samples: agreement with the reference is gated then",
        )
    return float((logits.argmax(-1) == samples.labels).mean())
