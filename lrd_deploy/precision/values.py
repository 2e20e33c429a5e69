"""What is known of a graph's values before it runs: their types, the constants, and who reads them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from lrd_deploy.export.onnx_file import default_opset
from lrd_deploy.export.skeleton import inferred
from lrd_deploy.export.tensor_data import tensor_values

_STANDARD = {"", "ai.onnx"}
_WEIGHTED = {"Conv", "Gemm", "MatMul"}


def node_title(node: NodeProto) -> str:
    """Returns what reports call a node: its name, or its operator and output where it has none."""
    return node.name or f"{node.op_type} -> {node.output[0]}"


def is_standard(node: NodeProto) -> bool:
    """True for an operator of ONNX's own set."""
    return node.domain in _STANDARD


@dataclass(frozen=True)
class GraphValues:
    """`types` holds the element type of every value where it is known; `constants` the tensors no caller can feed."""

    types: dict[str, int]
    shapes: dict[str, tuple[int | None, ...]]
    constants: dict[str, TensorProto]
    opset: int
    captured: set[str] = field(default_factory=set)  # read inside the bodies of If, Loop and Scan
    not_tensors: set[str] = field(default_factory=set)  # sequences, optionals and sparse tensors

    @classmethod
    def of(cls, model: ModelProto) -> GraphValues:
        """Infers types and shapes.

        Raises:
            InputError: they contradict each other.
        """
        graph, found = model.graph, inferred(model)
        known = (*found.value_info, *found.input, *found.output)
        constants = constant_tensors(graph)
        types = {value.name: value.type.tensor_type.elem_type for value in known}
        types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
        types |= {name: tensor.data_type for name, tensor in constants.items()}
        shapes = {
            value.name: tuple(
                dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim
            )
            for value in known
            if value.type.tensor_type.HasField("shape")
        }
        captured = {name for node in graph.node for body in _bodies(node) for name in _read_within(body)}
        others = {value.name for value in known if value.type.WhichOneof("value") not in (None, "tensor_type")}
        return cls(types, shapes, constants, default_opset(model), captured, others)

    def is_float(self, value: str) -> bool:
        """True for a value of float32."""
        return self.types.get(value) == TensorProto.FLOAT

    def weight_of(self, node: NodeProto) -> TensorProto | None:
        """Returns the constant that a Conv, Gemm or MatMul multiplies by, or None."""
        weighted = is_standard(node) and node.op_type in _WEIGHTED
        if not weighted or node.input[0] in self.constants:
            return None
        return self.constants.get(node.input[1])


@dataclass
class FreshNames:
    """Names that nothing in a graph has."""

    taken: set[str]

    @classmethod
    def of(cls, model: ModelProto) -> FreshNames:
        """Reads what is taken, in bodies too."""
        graph = model.graph
        own = {name for node in graph.node for name in (node.name, *node.input, *node.output)}
        own |= {tensor.name for tensor in graph.initializer} | {value.name for value in graph.input}
        return cls(own | {name for node in graph.node for body in _bodies(node) for name in _named_within(body)})

    def unused(self, name: str) -> str:
        """Returns the name, longer by underscores where it is taken, and takes it."""
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name


def constant_tensors(graph: GraphProto) -> dict[str, TensorProto]:
    """Returns what no caller can feed: initializers, Constant nodes, and these behind Identity and Transpose."""
    inputs = {value.name for value in graph.input}
    found = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in inputs}
    for node in graph.node:
        if not is_standard(node):
            continue
        source = found.get(node.input[0]) if node.input else None
        attributes = {entry.name: entry for entry in node.attribute}
        if node.op_type == "Constant" and "value" in attributes:
            found[node.output[0]] = attributes["value"].t
        elif node.op_type == "Identity" and source is not None:
            found[node.output[0]] = source
        elif node.op_type == "Transpose" and source is not None:
            axes = list(attributes["perm"].ints) if "perm" in attributes else None
            found[node.output[0]] = numpy_helper.from_array(tensor_values(source).transpose(axes))
    return found


def read_values(graph: GraphProto) -> set[str]:
    """Returns every value that a node, a node in a body, or the graph's caller reads."""
    read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    return read | {name for node in graph.node for body in _bodies(node) for name in _read_within(body)}


def has_body(node: NodeProto) -> bool:
    """True for If, Loop, Scan and the like."""
    return any(True for _ in _bodies(node))


def _bodies(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def _read_within(body: GraphProto) -> Iterator[str]:
    """Names read in a body, its own included; that some are its own does no harm."""
    yield from (output.name for output in body.output)
    for node in body.node:
        yield from node.input
        for inner in _bodies(node):
            yield from _read_within(inner)


def _named_within(body: GraphProto) -> Iterator[str]:
    yield from (value.name for value in (*body.input, *body.initializer))
    for node in body.node:
        yield from (node.name, *node.input, *node.output)
        for inner in _bodies(node):
            yield from _named_within(inner)
