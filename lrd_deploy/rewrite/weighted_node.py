"""Nodes with a weight: convolutions and matrix products, whose weights are read and written as a layer has them."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from lrd_deploy.rewrite.stored_weight import StoredWeight, stored_weight

# Nodes that can follow each other as factors: convolutions, or matrix products of either spelling.
FAMILY = {"Conv": "convolution", "Gemm": "product", "MatMul": "product"}
_STANDARD = (None, "", "ai.onnx")
Array = NDArray[np.floating]


def is_weighted(node: gs.Node) -> bool:
    """True for a convolution or matrix product whose second input is a constant of a full layer's shape."""
    if node.op not in FAMILY or node.domain not in _STANDARD or len(node.inputs) < 2:
        return False
    stored = stored_weight(node.inputs[1])
    return stored is not None and len(stored.shape) == (4 if node.op == "Conv" else 2)


def check_weighted(node: gs.Node) -> str | None:
    """Returns why a weighted node is more than a layer of weights that numpy can hold, or None."""
    if not _carries_channels_through(node):
        return f"'{node.name}' scales or transposes its input"
    if _groups(node) != 1:
        return f"'{node.name}' is a grouped convolution"
    if obstacle := _stored(node).obstacle:
        return f"the weight of '{node.name}' {obstacle}"
    dtype = weight_dtype(node)
    if dtype not in (np.float16, np.float32, np.float64):
        return f"the weight of '{node.name}' is {dtype}, which this rule does not handle"
    return None


def weight(node: gs.Node) -> Array:
    """Returns the weight as (out, in) or (out, in, kh, kw), whatever its orientation in the node."""
    array = _stored(node).values()
    return array.T if _stores_in_out(node) else array


def weight_dtype(node: gs.Node) -> np.dtype:
    """Returns the type of a node's weight; its values are not read."""
    return _stored(node).dtype


def set_weight(node: gs.Node, array: Array, name: str) -> None:
    """Gives a node a weight from (out, in) or (out, in, kh, kw), under a new name; the old one stays with others."""
    if node.op == "Conv" and array.ndim == 2:
        array = array[:, :, None, None]  # (out, in, 1, 1)
    stored = np.ascontiguousarray(array.T if _stores_in_out(node) else array)
    node.inputs[1] = gs.Constant(name, stored)


def bias(node: gs.Node) -> Array | None:
    """Returns the bias of a node for which `has_plain_bias` holds, or None where it has none."""
    return stored_weight(node.inputs[2]).values() if _has_bias(node) else None


def set_bias(node: gs.Node, array: Array, name: str) -> None:
    """Gives a Conv or Gemm a bias with one value per channel, under a new name; the old one stays with others."""
    drop_bias(node)
    node.inputs.append(gs.Constant(name, np.ascontiguousarray(array)))


def drop_bias(node: gs.Node) -> None:
    """Leaves a Conv or Gemm without a bias."""
    while len(node.inputs) > 2:
        node.inputs.pop()


def has_plain_bias(node: gs.Node) -> bool:
    """True where the node has no bias, or a constant with one value per channel."""
    if not _has_bias(node):
        return True
    stored = stored_weight(node.inputs[2])
    return stored is not None and stored.obstacle is None and stored.shape == (out_channels(node),)


def in_channels(node: gs.Node) -> int:
    """Returns the width of the node's input."""
    shape = _stored(node).shape
    return shape[0] if _stores_in_out(node) else shape[1] * _groups(node)


def out_channels(node: gs.Node) -> int:
    """Returns the width of the node's output."""
    return _stored(node).shape[1 if _stores_in_out(node) else 0]


def kernel_size(node: gs.Node) -> tuple[int, int]:
    """Returns the pixels that a node spans, (height, width): one for a matrix product."""
    return _stored(node).shape[2:] if node.op == "Conv" else (1, 1)


def detach(node: gs.Node) -> None:
    """Takes a node out of the data flow: it reads nothing and writes nothing, and the graph's cleanup drops it."""
    node.inputs.clear()
    node.outputs.clear()


def _stored(node: gs.Node) -> StoredWeight:
    return stored_weight(node.inputs[1])


def _stores_in_out(node: gs.Node) -> bool:
    return node.op == "MatMul" or (node.op == "Gemm" and not node.attrs.get("transB", 0))


def _groups(node: gs.Node) -> int:
    return node.attrs.get("group", 1) if node.op == "Conv" else 1


def _has_bias(node: gs.Node) -> bool:
    return len(node.inputs) > 2 and node.inputs[2].name != ""


def _carries_channels_through(node: gs.Node) -> bool:
    if node.op != "Gemm":
        return True
    return (
        node.attrs.get("alpha", 1.0) == 1.0 and node.attrs.get("beta", 1.0) == 1.0 and not node.attrs.get("transA", 0)
    )
