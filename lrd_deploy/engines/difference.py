"""How far two sets of outputs are apart, and how far rounding alone may take them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod, sqrt

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from lrd_deploy.errors import InputError
from lrd_deploy.records import OutputDifference

Array = NDArray[np.floating]
_SAFETY = 4.0


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
        InputError: shapes differ, or the candidate holds NaN or infinity.
    """
    for one, other in zip(reference, candidate, strict=True):
        if one.shape != other.shape:
            raise _incomparable(f"shapes {one.shape} and {other.shape}", "equal shapes")
        if np.isfinite(one).all() and not np.isfinite(other).all():
            raise _incomparable("NaN or infinity in the candidate's outputs alone", "finite outputs")
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
    """Returns the relative difference that float32 rounding may cause between two orders of summation.

    Machine epsilon, times the square root of the longest sum (errors of either sign partly cancel), times the number
    of weighted nodes that errors pass through, times a safety factor of 4.
    """
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    shapes = [
        weights[node.input[1]]
        for node in model.graph.node
        if node.op_type in {"Conv", "Gemm", "MatMul"} and node.input[1] in weights
    ]
    longest = max((max(prod(shape[1:]), shape[0]) for shape in shapes if shape), default=1)
    return float(_SAFETY * np.finfo(np.float32).eps * sqrt(longest) * max(len(shapes), 1))


def _incomparable(found: str, accepted: str) -> InputError:
    return InputError(
        "comparing outputs",
        found=found,
        accepted=accepted,
        remedy="compare models with the same inputs and outputs; look for overflow in the candidate",
    )
