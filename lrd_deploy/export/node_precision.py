"""How much of a graph computes in which type."""

from __future__ import annotations

from collections import Counter

from onnx import ModelProto, TensorProto

from lrd_deploy.export.skeleton import inferred

_NAMES = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.DOUBLE: "fp64",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "int8",
    TensorProto.FLOAT8E4M3FN: "fp8",
    TensorProto.FLOAT8E5M2: "fp8",
}


def node_shares(model: ModelProto) -> dict[str, float]:
    """Returns the share of each type among the nodes, by the type of a node's first output.

    Nodes that compute shapes and indices, and those whose type cannot be inferred, are left out. The convolution
    between a dequantising and a quantising node counts as what its output is, although an engine runs it in INT8.
    """
    types = _types(model)
    counts = Counter(
        _NAMES[kind] for node in model.graph.node if (kind := types.get(next(iter(node.output), ""))) in _NAMES
    )
    total = sum(counts.values())
    return {name: count / total for name, count in sorted(counts.items())}


def _types(model: ModelProto) -> dict[str, int]:
    """Element types by the name of the value."""
    found = inferred(model)
    values = (*found.input, *found.value_info, *found.output)
    return {value.name: value.type.tensor_type.elem_type for value in values}
