"""What an ONNX file costs and how often it is right, read from the file itself, whoever made it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from torch import Tensor

from lrd_deploy.export.torch_export import INPUT, OUTPUT

_MULTIPLYING = {"Conv", "Gemm", "MatMul"}


@dataclass(frozen=True)
class GraphCost:
    """Multiply–accumulates for one sample, products of activations included; elements of all initializers."""

    macs: int
    parameters: int


def graph_cost(path: Path, example: NDArray[np.generic]) -> GraphCost:
    """Counts a float graph; sizes are taken from running it on `example`, one sample."""
    model = onnx.load(path)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    floats = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    nodes = [node for node in model.graph.node if node.op_type in _MULTIPLYING]
    shapes |= _run_shapes(model, example, {name for node in nodes for name in (*node.input, *node.output) if name})
    return GraphCost(
        macs=sum(_macs(node, shapes) for node in nodes),
        parameters=sum(prod(tensor.dims) for tensor in floats),
    )


def graph_digest(path: Path) -> str:
    """Digests all that a graph's latency depends on: operators, attributes, types and shapes; not the weights."""
    model = onnx.load(path)
    kinds = {tensor.name: f"{tensor.data_type}{list(tensor.dims)}" for tensor in model.graph.initializer}
    digest = hashlib.sha256()
    for node in model.graph.node:
        attributes = sorted(attribute.SerializeToString() for attribute in node.attribute)
        digest.update(repr((node.op_type, attributes, [kinds.get(name, "") for name in node.input])).encode())
    return digest.hexdigest()[:16]


def accuracy_of(path: Path, test: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Returns the share of test images that the file classifies right."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    right, total = 0, 0
    for inputs, labels in test:
        (output,) = session.run([OUTPUT], {INPUT: inputs.numpy()})
        right += int((output.argmax(-1) == labels.numpy()).sum())
        total += len(labels)
    return right / total


def _macs(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    weight, output = shapes[node.input[1]], prod(shapes[node.output[0]])
    if node.op_type == "Conv":
        return output * prod(weight[1:])
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return output * (weight[-1] if transposed else weight[-2])


def _run_shapes(model: onnx.ModelProto, example: NDArray[np.generic], names: set[str]) -> dict[str, tuple[int, ...]]:
    known = {value.name for value in (*model.graph.output, *model.graph.input, *model.graph.initializer)}
    wanted = sorted(names - known)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs = session.run([*wanted, OUTPUT], {INPUT: example})
    return {name: array.shape for name, array in zip([*wanted, OUTPUT], outputs, strict=True)}
