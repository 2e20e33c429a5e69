"""Finding the layers of an ONNX graph that can be factorised, and the reason for each that cannot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from lrd_deploy.errors import InputError
from lrd_deploy.export.onnx_file import tensor_info
from lrd_deploy.export.sized_graph import with_sizes
from lrd_deploy.export.skeleton import inferred, skeleton
from lrd_deploy.export.tensor_data import tensor_values
from lrd_deploy.models.layer import Layer, nothing_to_factorise, skip_refusal
from lrd_deploy.records import LayerSignature

Shape = tuple[int | str, ...]
_OPERATORS = {"Conv", "Gemm", "MatMul"}
_FLOATS = {TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE}
_GEMM_EXTRAS = (
    ("alpha", 1.0, "it scales its product"),
    ("beta", 1.0, "it scales its bias"),
    ("transA", 0, "it transposes its input"),
)


def survey_onnx(
    model: ModelProto, *, skip: tuple[str, ...] = (), shapes: Mapping[str, Sequence[int]] | None = None
) -> tuple[Layer, ...]:
    """Returns every Conv, Gemm and MatMul that has a weight, in the order of the graph's nodes.

    A MatMul of two activations has no weight and is left out. One weight may serve several nodes. Layers are named
    after their nodes; an unnamed node is called after its operator and output, and refused.

    Args:
        model: with its weights loaded; `Layer.weight` reads them from here, as float64.
        skip: glob patterns of node names that stay dense.
        shapes: of the inputs in the deployment, by name; a layer has a size of its own only where they settle it.

    Raises:
        InputError: no layer can be factorised, or the graph's shapes contradict each other.

    Limits:
        Nodes inside If and Loop bodies and in model-local functions are not looked at. Rows that a Gemm multiplies are
        taken for samples, even where a Reshape before it counts tokens among them.
    """
    values = _Values.of(model, shapes or {})
    names = Counter(node.name for node in model.graph.node)
    layers = [_layer(found, names, skip) for found in _weighted_nodes(model.graph, values)]
    if all(layer.refusal for layer in layers):
        accepted = "at least one Conv of one group, Gemm or MatMul with a constant weight"
        remedy = "choose another model; one in INT8 is compressed in float32 first, and converted afterwards"
        raise nothing_to_factorise(f"the graph '{model.graph.name}'", layers, accepted=accepted, remedy=remedy)
    return tuple(layers)


@dataclass(frozen=True)
class _Values:
    """What is known of the graph's values before it runs."""

    constants: dict[str, TensorProto]
    fixed: set[str]  # the constants, and all that is computed from them alone
    overridable: set[str]
    shapes: dict[str, Shape]

    @classmethod
    def of(cls, model: ModelProto, shapes: Mapping[str, Sequence[int]]) -> _Values:
        """Reads constants from the model and infers shapes from those of the inputs."""
        inputs = {value.name for value in model.graph.input}
        initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        constants = {name: tensor for name, tensor in initializers.items() if name not in inputs}
        constants |= _constant_nodes(model.graph)
        constants |= _handed_on(model.graph, constants)
        return cls(
            constants, _fixed(model.graph, constants), inputs & initializers.keys(), inferred_shapes(model, shapes)
        )


def _constant_nodes(graph: GraphProto) -> dict[str, TensorProto]:
    """Tensors of the Constant nodes that hold one, by the name of their output."""
    return {
        node.output[0]: attribute.t
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    }


def _handed_on(graph: GraphProto, constants: Mapping[str, TensorProto]) -> dict[str, TensorProto]:
    """Constants behind Identity and Transpose nodes, which exporters put before shared and turned weights."""
    found: dict[str, TensorProto] = {}
    for node in graph.node:
        source = (found.get(node.input[0]) or constants.get(node.input[0])) if node.input else None
        if source is None:
            continue
        if node.op_type == "Identity":
            found[node.output[0]] = source
        elif node.op_type == "Transpose":
            axes = next((list(entry.ints) for entry in node.attribute if entry.name == "perm"), None)
            found[node.output[0]] = numpy_helper.from_array(tensor_values(source).transpose(axes))
    return found


def _fixed(graph: GraphProto, constants: Iterable[str]) -> set[str]:
    """Names of the constants, sparse ones too, and of all that nodes without a body compute from them alone."""
    fixed = {*constants, *(tensor.values.name for tensor in graph.sparse_initializer)}
    for node in graph.node:
        has_body = any(attribute.type == AttributeProto.GRAPH for attribute in node.attribute)
        if node.input and not has_body and all(name in fixed for name in node.input if name):
            fixed |= set(node.output)
    return fixed


def inferred_shapes(model: ModelProto, shapes: Mapping[str, Sequence[int]] | None = None) -> dict[str, Shape]:
    """Returns shapes by value name, where the number of dimensions is known; a dimension that is not is a name.

    `shapes` of inputs, by name, settle their open dimensions but the batch.

    Raises:
        InputError: the graph's shapes contradict each other.
    """
    graph = inferred(with_sizes(skeleton(model), shapes) if shapes else model)
    return {
        value.name: tensor_info(value).shape
        for value in (*graph.value_info, *graph.output, *graph.input)
        if value.type.tensor_type.HasField("shape")
    }


@dataclass(frozen=True)
class _WeightedNode:
    """A node with the constant that is its weight, or what keeps it from having one."""

    node: NodeProto
    tensor: TensorProto | None
    obstacle: str | None
    input_shape: Shape | None

    def attribute(self, name: str, default: Any) -> Any:
        """Returns an attribute's value, or what the operator takes where the node does not say."""
        found = next((entry for entry in self.node.attribute if entry.name == name), None)
        return default if found is None else onnx.helper.get_attribute_value(found)

    def weight(self) -> NDArray[np.float64]:
        """Returns the constant, (out, in) or (out, in, kh, kw); one of another shape comes as it is stored."""
        if self.tensor is None:
            raise InputError(
                f"reading the weight of the node '{self.node.name}'",
                found=self.obstacle or "none",
                accepted="a constant",
                remedy="leave this node dense",
            )
        array = tensor_values(self.tensor).astype(np.float64)
        is_stored_transposed = self.node.op_type == "MatMul" or not self.attribute("transB", 0)
        return array.T if self.node.op_type != "Conv" and array.ndim == 2 and is_stored_transposed else array


def _weighted_nodes(graph: GraphProto, values: _Values) -> Iterator[_WeightedNode]:
    for node in graph.node:
        if node.op_type not in _OPERATORS or node.domain not in {"", "ai.onnx"}:
            continue
        known = [name in values.fixed or name in values.overridable for name in node.input[:2]]
        if node.op_type != "MatMul" or any(known):
            tensor = values.constants.get(node.input[1])
            yield _WeightedNode(node, tensor, _obstacle(node, values), values.shapes.get(node.input[0]))


def _obstacle(node: NodeProto, values: _Values) -> str | None:
    """Why the node's weight cannot be read as a constant of floats, or None."""
    data, weight = node.input[:2]
    if data in values.fixed:
        weight_is_first = node.op_type == "MatMul" and weight not in values.fixed
        return "its weight is its first input" if weight_is_first else "its input is a constant"
    if weight in values.overridable:
        return "its weight is a graph input too, so that a caller may override it"
    tensor = values.constants.get(weight)
    if tensor is None:
        return "its weight is not a constant"
    if tensor.data_type not in _FLOATS:
        return f"its weight is {TensorProto.DataType.Name(tensor.data_type).lower()}, not float16, float32 or float64"
    return None


def _layer(found: _WeightedNode, names: Counter[str], skip: tuple[str, ...]) -> Layer:
    node = found.node
    name = node.name or f"{node.op_type} -> {node.output[0]}"
    refusal = skip_refusal(name, skip) or _name_refusal(node, names) or found.obstacle or _operator_refusal(found)
    return Layer(
        name=name,
        signature=_signature(found),
        weight=found.weight,
        refusal=refusal or _size_refusal(found),
    )


def _name_refusal(node: NodeProto, names: Counter[str]) -> str | None:
    if not node.name:
        return "it has no name"
    return f"{names[node.name]} nodes have this name" if names[node.name] > 1 else None


def _operator_refusal(found: _WeightedNode) -> str | None:
    """The first reason why a node with a constant weight has no factors, or None."""
    if found.node.op_type == "Conv":
        return _convolution_refusal(found)
    if len(found.tensor.dims) != 2:
        return f"its weight has {len(found.tensor.dims)} dimensions, not 2"
    if found.node.op_type == "Gemm":
        for name, neutral, effect in _GEMM_EXTRAS:
            if (value := found.attribute(name, neutral)) != neutral:
                return f"{effect} ({name} {value:g})"
    return None


def _convolution_refusal(found: _WeightedNode) -> str | None:
    if len(found.tensor.dims) != 4:
        return f"Conv{len(found.tensor.dims) - 2}d has no factorised form here"
    if (groups := found.attribute("group", 1)) > 1:
        return f"grouped convolution ({groups} groups)"
    if (auto_pad := found.attribute("auto_pad", b"NOTSET").decode()) not in {"NOTSET", "VALID"}:
        return f"its padding follows from its input's size (auto_pad {auto_pad})"
    if _padding(found) is None:
        return f"its padding is uneven ({', '.join(map(str, found.attribute('pads', ())))})"
    return None


def _size_refusal(found: _WeightedNode) -> str | None:
    """Why the size of the node's input is not known, or None."""
    if found.node.op_type == "Gemm":
        return None
    if found.input_shape is None:
        return "the shape of its input is not known"
    if len(found.input_shape) < 2:
        return "its input is a single vector"
    size = _spatial(found)
    if any(isinstance(dim, str) for dim in size):
        return f"the size of its input is not fixed ({' × '.join(map(str, size))})"
    return None


def _spatial(found: _WeightedNode) -> Shape:
    """The input's size without batch and channels."""
    if found.node.op_type == "Gemm":
        return ()
    return found.input_shape[2:] if found.node.op_type == "Conv" else found.input_shape[1:-1]


def _padding(found: _WeightedNode) -> tuple[int, int] | None:
    """Padding in pixels at both ends of each axis; None where the ends differ or the input's size decides."""
    auto_pad = found.attribute("auto_pad", b"NOTSET")
    if auto_pad == b"VALID":
        return (0, 0)
    top, left, bottom, right = found.attribute("pads", (0, 0, 0, 0))
    return (top, left) if auto_pad == b"NOTSET" and (top, left) == (bottom, right) else None


def _signature(found: _WeightedNode) -> LayerSignature | None:
    """The signature, or None where a record of it would say something else than the node does."""
    ndim = 4 if found.node.op_type == "Conv" else 2
    if found.obstacle or len(found.tensor.dims) != ndim or _size_refusal(found):
        return None
    if found.node.op_type == "Conv":
        return _convolution_signature(found)
    transposed = found.node.op_type == "Gemm" and found.attribute("transB", 0)
    out_channels, in_channels = found.tensor.dims if transposed else reversed(found.tensor.dims)
    return LayerSignature(kind="linear", in_channels=in_channels, out_channels=out_channels, spatial=_spatial(found))


def _convolution_signature(found: _WeightedNode) -> LayerSignature | None:
    padding, groups = _padding(found), found.attribute("group", 1)
    if padding is None:
        return None
    return LayerSignature(
        kind="conv2d",
        in_channels=found.tensor.dims[1] * groups,
        out_channels=found.tensor.dims[0],
        kernel=tuple(found.tensor.dims[2:]),
        stride=tuple(found.attribute("strides", (1, 1))),
        padding=padding,
        dilation=tuple(found.attribute("dilations", (1, 1))),
        groups=groups,
        spatial=_spatial(found),
    )
