"""Do two ONNX files compute the same?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onnx import ModelProto

from lrd_deploy.engines.backend import Arrays, SessionSettings
from lrd_deploy.engines.catalogue import runtime
from lrd_deploy.engines.difference import compare_outputs, rounding_tolerance
from lrd_deploy.errors import InputError
from lrd_deploy.export.onnx_file import graph_inputs, read_model
from lrd_deploy.records import OutputDifference, TensorInfo


def verify(
    reference: Path, candidate: Path, batches: Sequence[Arrays], *, tolerance: float | None = None
) -> OutputDifference:
    """Runs both in ONNX Runtime on the same inputs and compares their outputs.

    Args:
        reference: an ONNX file.
        candidate: an ONNX file with the same inputs and outputs.
        batches: inputs by name, one per batch.
        tolerance: largest relative L2 difference that passes; None is what float32 rounding explains for this graph.

    Raises:
        InputError: a file is invalid, or the outputs cannot be compared.
        BackendError: ONNX Runtime refuses a model or its inputs.
    """
    model = read_model(reference)
    check_same_inputs(model, read_model(candidate))
    backend = runtime("onnxruntime")
    sessions = [backend.load(path, SessionSettings()) for path in (reference, candidate)]
    limit = rounding_tolerance(model) if tolerance is None else tolerance
    return compare_outputs(sessions[0].run, sessions[1].run, batches, limit)


def check_same_inputs(reference: ModelProto, candidate: ModelProto) -> None:
    """Raises `InputError` when two models cannot be fed the same arrays."""
    ours, theirs = (graph_inputs(model) for model in (reference, candidate))
    if [_kind(tensor) for tensor in ours] != [_kind(tensor) for tensor in theirs]:
        raise InputError(
            "comparing two models",
            found=f"inputs {_listed(ours)} and {_listed(theirs)}",
            accepted="the same names, types and shapes",
            remedy="export both models alike, with the same batch dimension",
        )


def _kind(tensor: TensorInfo) -> tuple[str, str, tuple[int | None, ...]]:
    return tensor.name, tensor.dtype, tuple(None if isinstance(dim, str) else dim for dim in tensor.shape)


def _listed(inputs: Sequence[TensorInfo]) -> str:
    return (
        ", ".join(f"{tensor.name} {tensor.dtype}[{', '.join(map(str, tensor.shape))}]" for tensor in inputs) or "none"
    )
