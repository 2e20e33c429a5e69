"""One layer, dense or factorised, as an ONNX model of its own: what gets timed when ranks are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from lrd_deploy.ranks.cost import output_size
from lrd_deploy.ranks.forms import FactorShape, factor_shapes
from lrd_deploy.records import Choice, LayerSignature

_OPSET, _IR_VERSION = 20, 10
Factors = Sequence[FactorShape]
Weights = dict[str, np.ndarray]
Precision = Literal["fp32", "fp16"]
_TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16}


def layer_graph(signature: LayerSignature, choice: Choice, precision: Precision = "fp32") -> ModelProto:
    """Returns the layer with random weights and a bias, input `x` with a dynamic batch and output `y`.

    All of it is of that precision, as the layer is within a model that was converted. The nodes are those that
    exporting the layer gives: Conv for convolutions, Gemm for a linear layer on vectors, MatMul and Add for one on
    sequences.
    """
    factors = factor_shapes(signature.in_channels, signature.out_channels, choice)
    make = _convolutions if signature.kind == "conv2d" else _products
    nodes, weights = make(signature, factors)
    element, dtype = _TYPES[precision], helper.tensor_dtype_to_np_dtype(_TYPES[precision])
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", element, ["batch", *_input_shape(signature)])],
        [helper.make_tensor_value_info("y", element, ["batch", *_output_shape(signature)])],
        [numpy_helper.from_array(array.astype(dtype), name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)


def layer_input(signature: LayerSignature, batch: int, precision: Precision = "fp32") -> np.ndarray:
    """Returns a random input of that batch."""
    x = np.random.default_rng(0).standard_normal((batch, *_input_shape(signature)), dtype=np.float32)
    return x.astype(helper.tensor_dtype_to_np_dtype(_TYPES[precision]))


def _input_shape(signature: LayerSignature) -> tuple[int, ...]:
    if signature.kind == "conv2d":
        return (signature.in_channels, *signature.spatial)
    return (*signature.spatial, signature.in_channels)


def _output_shape(signature: LayerSignature) -> tuple[int, ...]:
    size = output_size(signature)
    return (signature.out_channels, *size) if signature.kind == "conv2d" else (*size, signature.out_channels)


def _convolutions(signature: LayerSignature, factors: Factors) -> tuple[list[NodeProto], Weights]:
    nodes, weights = [], {}
    for number, factor in enumerate(factors):
        groups = signature.groups if factor.name == "dense" else 1
        kernel = _placed(signature.kernel, factor, 1)
        weights[f"w{number}"] = _random((factor.out_channels, factor.in_channels // groups, *kernel))
        names = [f"v{number}" if number else "x", f"w{number}"]
        if number == len(factors) - 1:
            weights["bias"] = _random((factor.out_channels,))
            names.append("bias")
        output = "y" if number == len(factors) - 1 else f"v{number + 1}"
        nodes.append(
            helper.make_node(
                "Conv",
                names,
                [output],
                kernel_shape=kernel,
                strides=_placed(signature.stride, factor, 1),
                pads=_placed(signature.padding, factor, 0) * 2,
                dilations=_placed(signature.dilation, factor, 1),
                group=groups,
            )
        )
    return nodes, weights


def _placed(sizes: tuple[int, int], factor: FactorShape, neutral: int) -> tuple[int, ...]:
    return tuple(size if placed else neutral for size, placed in zip(sizes, factor.places, strict=True))


def _products(signature: LayerSignature, factors: Factors) -> tuple[list[NodeProto], Weights]:
    shapes = [(factor.in_channels, factor.out_channels) for factor in factors]
    weights = {f"w{number}": _random(shape) for number, shape in enumerate(shapes)}
    weights["bias"] = _random((signature.out_channels,))
    last = len(factors) - 1
    operator = "MatMul" if signature.spatial else "Gemm"
    nodes = [helper.make_node(operator, [f"v{n}" if n else "x", f"w{n}"], [f"v{n + 1}"]) for n in range(last)]
    source = f"v{last}" if last else "x"
    if signature.spatial:
        nodes.append(helper.make_node("MatMul", [source, f"w{last}"], ["product"]))
        nodes.append(helper.make_node("Add", ["product", "bias"], ["y"]))
    else:
        nodes.append(helper.make_node("Gemm", [source, f"w{last}", "bias"], ["y"]))
    return nodes, weights


def _random(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32) / np.sqrt(np.prod(shape[1:]) or 1)
