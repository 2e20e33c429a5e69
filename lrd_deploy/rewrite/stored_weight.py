"""Where a node's weight is stored: an initializer, or a constant that a few harmless nodes hand on.

Exporters put Identity nodes before weights that layers share, Transpose nodes before those that they store the other
way round, and whole weights into Constant nodes. A rule reads through these and gives the node an initializer of its
own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import helper
from onnx_graphsurgeon.ir.tensor import SparseValues

from lrd_deploy.rewrite.held_weights import constant_values

_OPAQUE = {"DequantizeLinear": "is quantised", "Cast": "is cast from another type"}
Values = Callable[[], NDArray[np.generic]]


@dataclass(frozen=True)
class StoredWeight:
    """A constant as its reader gets it. `obstacle` says why its values are not to be rewritten; None where they are."""

    shape: tuple[int, ...]
    dtype: np.dtype
    values: Values
    obstacle: str | None = None


def stored_weight(tensor: gs.Tensor) -> StoredWeight | None:
    """Returns the constant that a tensor holds, or None where it is computed in another way."""
    if isinstance(tensor, gs.Constant):
        return _constant(tensor)
    if not tensor.inputs:
        return None  # a graph input
    node = tensor.inputs[0]
    if node.op == "Constant":
        held = node.attrs.get("value")
        return stored_weight(held) if isinstance(held, gs.Constant) else None
    source = stored_weight(node.inputs[0]) if node.inputs else None
    if source is None:
        return None
    if node.op == "Identity":
        return source
    if node.op == "Transpose":
        return _transposed(source, tuple(node.attrs.get("perm", range(len(source.shape))[::-1])))
    return replace(source, obstacle=_OPAQUE[node.op]) if node.op in _OPAQUE else None


def _constant(tensor: gs.Constant) -> StoredWeight:
    kind = tensor.dtype if isinstance(tensor.dtype, np.dtype) else helper.tensor_dtype_to_np_dtype(tensor.dtype)
    sparse = isinstance(tensor._values, SparseValues)
    return StoredWeight(
        tuple(tensor.shape), kind, lambda: constant_values(tensor), "is stored sparsely" if sparse else None
    )


def _transposed(source: StoredWeight, axes: tuple[int, ...]) -> StoredWeight:
    shape = tuple(source.shape[axis] for axis in axes)
    return replace(source, shape=shape, values=lambda: source.values().transpose(axes))
