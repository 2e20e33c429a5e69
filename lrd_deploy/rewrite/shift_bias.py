"""Adding to the bias of one node of a model, wherever the graph keeps it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from lrd_deploy.export.tensor_data import tensor_values
from lrd_deploy.rewrite.weighted_node import Array


@dataclass(frozen=True)
class _Bias:
    """Which input of which node adds a constant per channel; no tensor where there is none yet."""

    reader: NodeProto
    position: int
    tensor: TensorProto | None


def shift_bias_(model: ModelProto, name: str, shift: Array) -> str | None:
    """Adds a value per channel to what a node gives out, in place; returns why it cannot be done, or None.

    A Conv or Gemm without a bias gets one. A MatMul has none: there the Add after it is changed, where it adds one
    constant per channel and nothing else reads the product. A constant that others read too stays for them.

    Args:
        model: holds a node of that name with a weight that is an initializer.
        name: of a Conv, Gemm or MatMul.
        shift: (out,).
    """
    node = next(node for node in model.graph.node if node.name == name)
    bias = _after_product(model.graph, node) if node.op_type == "MatMul" else _own(model.graph, node)
    if isinstance(bias, str):
        return bias
    if bias.tensor is not None and tuple(bias.tensor.dims) != shift.shape:
        return "its bias does not have one value per channel"
    like = bias.tensor or _initializer(model.graph, node.input[1])
    values = shift if bias.tensor is None else tensor_values(bias.tensor).astype(np.float64) + shift
    _replace_(model.graph, bias, numpy_helper.from_array(values.astype(tensor_values(like).dtype)))
    return None


def biased_value(graph: GraphProto, node: NodeProto) -> str:
    """Returns the value that holds a Conv's, Gemm's or MatMul's output with its bias, if it has one."""
    bias = _after_product(graph, node) if node.op_type == "MatMul" else None
    return bias.reader.output[0] if isinstance(bias, _Bias) else node.output[0]


def _own(graph: GraphProto, node: NodeProto) -> _Bias | str:
    if len(node.input) < 3 or not node.input[2]:
        return _Bias(node, 2, None)
    tensor = _initializer(graph, node.input[2])
    return "its bias is no initializer" if tensor is None else _Bias(node, 2, tensor)


def _after_product(graph: GraphProto, node: NodeProto) -> _Bias | str:
    value = node.output[0]
    readers = [reader for reader in graph.node if value in reader.input]
    is_output = value in {output.name for output in graph.output}
    if len(readers) == 1 and readers[0].op_type == "Add" and not is_output:
        position = 1 - list(readers[0].input).index(value)
        tensor = _initializer(graph, readers[0].input[position])
        if tensor is not None:
            return _Bias(readers[0], position, tensor)
    return "it is a MatMul, and what reads it is no Add of a constant"


def _replace_(graph: GraphProto, bias: _Bias, tensor: TensorProto) -> None:
    """Gives the reader a tensor under a name of its own; the old one goes where nobody else reads it."""
    taken = {entry.name for entry in graph.initializer}
    tensor.name = f"{bias.reader.name or bias.reader.output[0]}.corrected_bias"
    while tensor.name in taken:
        tensor.name += "_"
    while len(bias.reader.input) <= bias.position:
        bias.reader.input.append("")
    bias.reader.input[bias.position] = tensor.name
    if bias.tensor is not None and not _is_read(graph, bias.tensor.name):
        graph.initializer.remove(bias.tensor)
    graph.initializer.append(tensor)


def _is_read(graph: GraphProto, name: str) -> bool:
    """True where a node, a node in a body, or the graph's caller reads a value."""
    bodies = [entry.g for node in graph.node for entry in node.attribute if entry.type == AttributeProto.GRAPH]
    return (
        any(name in node.input for node in graph.node)
        or name in {output.name for output in graph.output}
        or any(_is_read(body, name) for body in bodies)
    )


def _initializer(graph: GraphProto, name: str) -> TensorProto | None:
    return next((tensor for tensor in graph.initializer if tensor.name == name), None)
