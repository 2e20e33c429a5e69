"""INT8 by explicit quantisation: symmetric, weights per output channel, biases left as they are.

Every Conv, Gemm and MatMul with a constant weight reads its data through QuantizeLinear and DequantizeLinear, and its
weight, stored as INT8, through DequantizeLinear. A value that several nodes read is quantised once; so is the one
between two factors.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from lrd_deploy.export.tensor_data import tensor_values
from lrd_deploy.precision.conversion import Conversion, with_nodes
from lrd_deploy.precision.placement import LARGEST, Placement, is_relu, placement
from lrd_deploy.precision.values import FreshNames, GraphValues
from lrd_deploy.records import ActivationType

_DIMENSIONS = {"Conv": (3, 4, 5), "Gemm": (2,), "MatMul": (2,)}


def quantisable(model: ModelProto) -> tuple[list[int], dict[int, str]]:
    """Returns the positions of the nodes that INT8 can take, and why it cannot take the other Conv, Gemm and MatMul."""
    values = GraphValues.of(model)
    found = {
        place: _refusal(node, values)
        for place, node in enumerate(model.graph.node)
        if node.op_type in _DIMENSIONS and any(map(values.is_float, node.input))
    }
    free = [place for place, reason in found.items() if reason is None]
    return free, {place: reason for place, reason in found.items() if reason is not None}


def values_to_measure(model: ModelProto) -> tuple[str, ...]:
    """Returns the values whose ranges quantisation may ask for: what nodes read, and what convolutions give out."""
    nodes = [model.graph.node[place] for place in quantisable(model)[0]]
    read = [node.input[0] for node in nodes]
    given = [node.output[0] for node in nodes if node.op_type == "Conv"]
    after = [node.output[0] for node in model.graph.node if is_relu(node) and node.input[0] in set(given)]
    return tuple(dict.fromkeys([*read, *given, *after]))


def to_int8(
    model: ModelProto, magnitudes: Mapping[str, float], activation_type: ActivationType, keep: Mapping[int, str]
) -> Conversion:
    """Returns the graph with explicit quantisation.

    Args:
        model: float32, of opset 13 or above; left as it was.
        magnitudes: the largest that each value of `values_to_measure` may have.
        activation_type: "int8" with zero point 0, as TensorRT takes it; "uint8" as ONNX Runtime's CPU kernels want it.
        keep: reasons to leave a node in float32, by its position.
    """
    free, kept = quantisable(model)
    for place in free:
        read = model.graph.node[place].input[0]
        always_zero = not magnitudes.get(read, 0.0) > 0
        reason = keep.get(place) or (f"the value that it reads, '{read}', was always zero" if always_zero else None)
        if reason:
            kept[place] = reason
    chosen = tuple(place for place in free if place not in kept)
    where = placement(model, chosen, magnitudes, activation_type)
    quantiser = _Quantiser(magnitudes, where, FreshNames.of(model))
    quantiser.quantise(model, chosen)
    return Conversion(with_nodes(model, quantiser.nodes, quantiser.initializers), kept, chosen)


def weight_scales(array: NDArray[np.floating], axis: int) -> NDArray[np.float32]:
    """Returns one scale per channel, along `axis`; a channel of zeros has 1."""
    others = tuple(other for other in range(array.ndim) if other != axis)
    scales = (np.abs(array.astype(np.float64)).max(axis=others) / LARGEST).astype(np.float32)
    return np.where(scales > 0, scales, np.float32(1))


def quantised_weight(array: NDArray[np.floating], scales: NDArray[np.float32], axis: int) -> NDArray[np.int8]:
    """Returns a weight in steps of its channels' scales, rounded half to even as QuantizeLinear does."""
    along = scales.reshape([-1 if place == axis else 1 for place in range(array.ndim)])
    return np.clip(np.rint(array / along), -LARGEST, LARGEST).astype(np.int8)


def channel_axis(node: NodeProto) -> int:
    """Returns the axis of the output channels in a node's weight as it is stored."""
    if node.op_type == "Conv":
        return 0
    is_turned = any(entry.name == "transB" and entry.i for entry in node.attribute)
    return 0 if node.op_type == "Gemm" and is_turned else 1


def _refusal(node: NodeProto, values: GraphValues) -> str | None:
    tensor = values.weight_of(node)
    if tensor is None:
        return "it has no constant weight"
    if tensor.data_type != TensorProto.FLOAT:
        return f"its weight is {TensorProto.DataType.Name(tensor.data_type).lower()}, not float32"
    if len(tensor.dims) not in _DIMENSIONS[node.op_type]:
        return f"its weight has {len(tensor.dims)} dimensions"
    if not np.isfinite(tensor_values(tensor)).all():
        return "its weight has values that are NaN or infinite"
    return None


@dataclass
class _Quantiser:
    """Builds the new nodes in the order of the old ones."""

    magnitudes: Mapping[str, float]
    placed: Placement
    names: FreshNames
    nodes: list[NodeProto] = field(default_factory=list)
    initializers: list[TensorProto] = field(default_factory=list)
    activations: dict[str, str] = field(default_factory=dict)  # by value, what it is after rounding
    weights: dict[tuple[str, int], str] = field(default_factory=dict)

    def quantise(self, model: ModelProto, chosen: Collection[int]) -> None:
        """Adds every node of a graph, the chosen ones quantised."""
        values = GraphValues.of(model)
        for place, node in enumerate(model.graph.node):
            copy = NodeProto()
            copy.CopyFrom(node)
            if self.placed.for_all:
                for position, name in enumerate(node.input):
                    copy.input[position] = self.activations.get(name, name)
            if place in chosen:
                copy.input[0] = self.activation(node.input[0])
                copy.input[1] = self.weight(node, values.constants[node.input[1]])
            self.nodes.append(copy)
            for name in node.output:
                if name in self.placed.at_source:
                    self.activation(name)

    def activation(self, name: str) -> str:
        """The value after its one pair of QuantizeLinear and DequantizeLinear."""
        if name not in self.activations:
            grid = self.placed.grid(name)
            scale = self.constant(f"{name}.scale", np.float32(self.magnitudes[name] / grid.levels))
            zero = self.constant(f"{name}.zero_point", grid.zero_point)
            integers = self.add("QuantizeLinear", [name, scale, zero], f"{name}.quantized")
            self.activations[name] = self.add("DequantizeLinear", [integers, scale, zero], f"{name}.dequantized")
        return self.activations[name]

    def weight(self, node: NodeProto, tensor: TensorProto) -> str:
        """The weight, stored as INT8, after its DequantizeLinear; nodes that share one go on sharing it."""
        name, axis = node.input[1], channel_axis(node)
        if (name, axis) not in self.weights:
            array = tensor_values(tensor)
            scales = weight_scales(array, axis)
            inputs = [
                self.constant(f"{name}.quantized", quantised_weight(array, scales, axis)),
                self.constant(f"{name}.scale", scales),
                self.constant(f"{name}.zero_point", np.zeros(len(scales), np.int8)),
            ]
            self.weights[name, axis] = self.add("DequantizeLinear", inputs, f"{name}.dequantized", axis=axis)
        return self.weights[name, axis]

    def constant(self, name: str, array: NDArray[np.generic]) -> str:
        """A new initializer's name."""
        name = self.names.unused(name)
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def add(self, operator: str, inputs: list[str], output: str, **attributes: int) -> str:
        """Appends a node with one output, after which it is named, and returns that."""
        output = self.names.unused(output)
        title = self.names.unused(f"{output}.{operator}")
        self.nodes.append(helper.make_node(operator, inputs, [output], name=title, **attributes))
        return output
