"""How much of a graph computes in which type."""

from __future__ import annotations

from collections import Counter

import onnx
from onnx import GraphProto, ModelProto, TensorProto

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
    light = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    light.graph.CopyFrom(_without_weights(model.graph))
    inferred = onnx.shape_inference.infer_shapes(light).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    return {value.name: value.type.tensor_type.elem_type for value in values}


def _without_weights(graph: GraphProto) -> GraphProto:
    """The graph with initializers as inputs of their type: there may be gigabytes of them."""
    light = GraphProto(name=graph.name, node=graph.node, input=graph.input, output=graph.output)
    light.value_info.extend(graph.value_info)
    there = {value.name for value in graph.input}
    light.input.extend(
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in graph.initializer
        if tensor.name not in there
    )
    return light
