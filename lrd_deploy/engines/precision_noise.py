"""How far apart two files may be because one of them computes in a lower precision."""

from __future__ import annotations

from math import sqrt

from onnx import ModelProto, TensorProto

from lrd_deploy.engines.difference import rounding_tolerance

_SAFETY = 4.0
_PEAK = 4.0  # the largest magnitude of a tensor beside its root mean square
_LEVELS = 127
# Relative L2 error that one layer adds. Half: data, weight and output each rounded by half a unit in the last place.
# INT8: data and weight each off by a uniform error within a step, which is the peak over the levels.
_NOISE = {
    TensorProto.FLOAT16: sqrt(3) * 2.0**-11,
    TensorProto.BFLOAT16: sqrt(3) * 2.0**-8,
    TensorProto.INT8: sqrt(2) * _PEAK / (_LEVELS * sqrt(12)),
}


def explained_difference(reference: ModelProto, candidate: ModelProto) -> float:
    """Returns the relative L2 difference of outputs that rounding explains, with a safety factor of 4.

    In float32 that is what another order of summation may cause. In FP16, BF16 and INT8 every weighted node adds an
    error of its own; errors of different nodes are independent, and add up in squares.

    Limits:
        Nodes between weighted ones are taken to hand errors on as they are. A network that amplifies them, or whose
        values peak far above their root mean square, may differ by more.
    """
    noise = max(_noise(reference), _noise(candidate))
    return noise or rounding_tolerance(reference)


def _noise(model: ModelProto) -> float:
    """Of all nodes whose weight is in a lower precision, or of one where only other nodes are; 0 of a float32 graph."""
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    casts = [entry.i for node in model.graph.node if node.op_type == "Cast" for entry in node.attribute]
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in types:
            types[node.output[0]] = TensorProto.INT8
    weights = [
        types.get(name)
        for node in model.graph.node
        if node.op_type in {"Conv", "Gemm", "MatMul"}
        for name in node.input[:2]
    ]
    layers = sqrt(sum(_NOISE.get(kind, 0.0) ** 2 for kind in weights))
    return _SAFETY * max(layers, *(_NOISE.get(kind, 0.0) for kind in (*casts, *types.values())), 0.0)
