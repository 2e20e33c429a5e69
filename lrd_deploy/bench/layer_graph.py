"""One layer, dense or factorised, as an ONNX model of its own: what gets timed when ranks are chosen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from lrd_deploy.ranks.cost import output_size
from lrd_deploy.records import SVD, Choice, KeepDense, LayerSignature, Tucker2

_OPSET, _IR_VERSION = 20, 10
Kernel = tuple[int, int]
Widths = Sequence[tuple[int, int, bool]]  # (in, out, whether this node places the kernel)


def layer_graph(signature: LayerSignature, choice: Choice) -> ModelProto:
    """Returns the layer with random weights and a bias, input `x` with a dynamic batch and output `y`.

    The nodes are those that exporting the layer gives: Conv for convolutions, Gemm for a linear layer on vectors,
    MatMul and Add for one on sequences.
    """
    widths = _widths(signature, choice)
    make = _convolutions if signature.kind == "conv2d" else _products
    nodes, initializers = make(signature, widths)
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *_input_shape(signature)])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", *_output_shape(signature)])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)


def layer_input(signature: LayerSignature, batch: int) -> np.ndarray:
    """Returns a random input of that batch."""
    return np.random.default_rng(0).standard_normal((batch, *_input_shape(signature)), dtype=np.float32)


def _input_shape(signature: LayerSignature) -> tuple[int, ...]:
    if signature.kind == "conv2d":
        return (signature.in_channels, *signature.spatial)
    return (*signature.spatial, signature.in_channels)


def _output_shape(signature: LayerSignature) -> tuple[int, ...]:
    size = output_size(signature)
    return (signature.out_channels, *size) if signature.kind == "conv2d" else (*size, signature.out_channels)


def _widths(signature: LayerSignature, choice: Choice) -> Widths:
    entry, exit_ = signature.in_channels, signature.out_channels
    match choice:
        case KeepDense():
            return [(entry, exit_, True)]
        case SVD(rank=rank):
            return [(entry, rank, True), (rank, exit_, False)]
        case Tucker2(rank_in=rank_in, rank_out=rank_out):
            return [(entry, rank_in, False), (rank_in, rank_out, True), (rank_out, exit_, False)]


def _convolutions(signature: LayerSignature, widths: Widths) -> tuple[list[NodeProto], list[TensorProto]]:
    nodes, initializers = [], []
    for number, (entry, exit_, places) in enumerate(widths):
        kernel = signature.kernel if places else (1, 1)
        groups = signature.groups if places else 1
        initializers.append(_random(f"w{number}", (exit_, entry // groups, *kernel)))
        names = [f"v{number}" if number else "x", f"w{number}"]
        if number == len(widths) - 1:
            initializers.append(_random("bias", (exit_,)))
            names.append("bias")
        placement = (
            {
                "strides": signature.stride,
                "pads": signature.padding * 2,
                "dilations": signature.dilation,
                "group": groups,
            }
            if places
            else {}
        )
        output = "y" if number == len(widths) - 1 else f"v{number + 1}"
        nodes.append(helper.make_node("Conv", names, [output], kernel_shape=kernel, **placement))
    return nodes, initializers


def _products(signature: LayerSignature, widths: Widths) -> tuple[list[NodeProto], list[TensorProto]]:
    initializers = [_random(f"w{number}", (entry, exit_)) for number, (entry, exit_, _) in enumerate(widths)]
    initializers.append(_random("bias", (signature.out_channels,)))
    last = len(widths) - 1
    operator = "MatMul" if signature.spatial else "Gemm"
    nodes = [helper.make_node(operator, [f"v{n}" if n else "x", f"w{n}"], [f"v{n + 1}"]) for n in range(last)]
    source = f"v{last}" if last else "x"
    if signature.spatial:
        nodes.append(helper.make_node("MatMul", [source, f"w{last}"], ["product"]))
        nodes.append(helper.make_node("Add", ["product", "bias"], ["y"]))
    else:
        nodes.append(helper.make_node("Gemm", [source, f"w{last}", "bias"], ["y"]))
    return nodes, initializers


def _random(name: str, shape: tuple[int, ...]) -> onnx.TensorProto:
    values = np.random.default_rng(0).standard_normal(shape, dtype=np.float32) / np.sqrt(np.prod(shape[1:]) or 1)
    return numpy_helper.from_array(values.astype(np.float32), name)
