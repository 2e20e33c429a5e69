"""How far two sets of outputs are apart, and how far rounding alone may take them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod, sqrt

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from lrd_deploy.engines.backend import Arrays
from lrd_deploy.errors import BackendError, InputError
from lrd_deploy.records import OutputDifference

Array = NDArray[np.generic]
Run = Callable[[Arrays], Mapping[str, Array]]
_SAFETY = 4.0
_EPSILON = {
    TensorProto.DOUBLE: 2.0**-52,
    TensorProto.FLOAT: 2.0**-23,
    TensorProto.FLOAT16: 2.0**-10,
    TensorProto.BFLOAT16: 2.0**-7,
}


def answers(run: Run, batches: Sequence[Arrays]) -> Run:
    """Returns what gives a model's outputs on these very batches, so that the model itself need not stay in memory."""
    kept = {id(inputs): run(inputs) for inputs in batches}
    return lambda inputs: kept[id(inputs)]


def compare_outputs(reference: Run, candidate: Run, batches: Sequence[Arrays], tolerance: float) -> OutputDifference:
    """Runs both on every batch and compares all their outputs, which must come in one order.

    Raises:
        InputError: the outputs cannot be compared.
    """
    expected, got = [], []
    for inputs in batches:
        expected.extend(np.asarray(output) for output in reference(inputs).values())
        got.extend(np.asarray(output) for output in candidate(inputs).values())
    if len(expected) != len(got):
        raise _incomparable(f"{len(expected)} and {len(got)} outputs", "equally many outputs")
    sizes = tuple(map(_batch_size, batches))
    return output_difference(expected, got, tolerance=tolerance, batches=sizes)


def outputs_moved(doing: str, difference: OutputDifference) -> BackendError:
    """Returns the error for a step that should have kept the outputs and did not."""
    return BackendError(
        doing,
        found=f"outputs that differ by {difference.relative_l2:.1e} (relative L2)",
        accepted=f"at most {difference.tolerance:.1e}, which rounding explains",
        remedy="report this with the model: the two must compute the same",
    )


def output_difference(
    reference: Sequence[Array], candidate: Sequence[Array], *, tolerance: float, batches: tuple[int, ...]
) -> OutputDifference:
    """Compares outputs, batch by batch, as one long vector; top-1 agreement is over the last axis.

    Args:
        reference: one array per batch.
        candidate: the same shapes.
        tolerance: the largest relative L2 difference that passes.
        batches: the batch sizes, for the record.

    Raises:
        InputError: shapes differ, or an output is no number, or NaN, or infinite.
    """
    for one, other in zip(reference, candidate, strict=True):
        if one.dtype.kind not in "fiub" or other.dtype.kind not in "fiub":
            raise _incomparable(f"outputs of type {one.dtype} and {other.dtype}", "numbers")
        if not one.size:
            raise _incomparable("outputs without a value", "at least one value per output")
        if one.shape != other.shape:
            raise _incomparable(f"shapes {one.shape} and {other.shape}", "equal shapes")
        for name, output in (("reference", one), ("candidate", other)):
            if not np.isfinite(output).all():
                raise _incomparable(f"NaN or infinity in the {name}'s outputs", "finite outputs")
    a = np.concatenate([array.astype(np.float64).ravel() for array in reference])
    b = np.concatenate([array.astype(np.float64).ravel() for array in candidate])
    norm_a, norm_b, distance = np.linalg.norm(a), np.linalg.norm(b), np.linalg.norm(a - b)
    relative = float(distance / norm_a) if norm_a else float(distance)
    same_top1 = np.concatenate(
        [(x.argmax(-1) == y.argmax(-1)).ravel() for x, y in zip(reference, candidate, strict=True)]
    )
    return OutputDifference(
        max_abs=float(np.abs(a - b).max()),
        relative_l2=relative,
        cosine=float(a @ b / (norm_a * norm_b)) if norm_a and norm_b else float(norm_a == norm_b),
        top1_agreement=float(same_top1.mean()),
        tolerance=tolerance,
        passed=relative <= tolerance,
        batches=batches,
    )


def rounding_tolerance(model: ModelProto) -> float:
    """Returns the relative difference that rounding may cause between two orders of summation.

    Machine epsilon of the coarsest float among the weights, times the square root of the longest sum (errors of either
    sign partly cancel), times the number of weighted nodes that errors pass through, times a safety factor of 4.
    """
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    shapes = [
        weights[node.input[1]]
        for node in model.graph.node
        if node.op_type in {"Conv", "Gemm", "MatMul"} and node.input[1] in weights
    ]
    longest = max((max(prod(shape[1:]), shape[0]) for shape in shapes if shape), default=1)
    dtypes = {tensor.data_type for tensor in model.graph.initializer} & _EPSILON.keys()
    epsilon = max((_EPSILON[dtype] for dtype in dtypes), default=_EPSILON[TensorProto.FLOAT])
    return float(_SAFETY * epsilon * sqrt(longest) * max(len(shapes), 1))


def _batch_size(inputs: Arrays) -> int:
    """Of the first input; an input without dimensions is one sample."""
    first = next(iter(inputs.values()))
    return len(first) if np.ndim(first) else 1


def _incomparable(found: str, accepted: str) -> InputError:
    return InputError(
        "comparing outputs",
        found=found,
        accepted=accepted,
        remedy="compare models with the same inputs and outputs; look for overflow in the candidate",
    )
