"""Names for nodes and initializers that lead back to the PyTorch module.

The exporter's own node names (`node_Conv_292`) change with every export. Ours are the module's dotted name for a node
with a weight and `scope.OpType` for every other, made unique with a number: the join key from module to node to engine
layer to profile row.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator, Sequence, Set

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto

from lrd_deploy.export.tensor_data import tensor_values
from lrd_deploy.records import NodeOrigin

_SCOPES = "pkg.torch.onnx.name_scopes"
_NOWHERE = "_empty_nn_module_stack_from_metadata_hook"  # the tracer's scope for what no module computes, such as sizes
_FACTORS = ("down", "up", "first", "core", "last")


def assign_names_(model: ModelProto, *, prefix: str, factorised: Set[str]) -> tuple[NodeOrigin, ...]:
    """Renames nodes and initializers in place and returns where each weighted node came from.

    Args:
        model: as torch's dynamo exporter wrote it.
        prefix: the export wrapper's attribute, such as `module.`; it is taken off every name.
        factorised: dotted names of the factorised layers, whose submodules are factors.
    """
    _rename_initializers_(model.graph, prefix)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    taken: set[str] = set()
    origins = []
    for node in _all_nodes(model.graph):
        module = _module_of(node, weights, prefix)
        weight = _weight_of(node, weights)
        node.name = _unique(module if weight and module else f"{module}.{node.op_type}".lstrip("."), taken)
        if weight and module:
            origins.append(_origin(node, module, weights[weight], factorised))
    return tuple(origins)


def _rename_initializers_(graph: GraphProto, prefix: str) -> None:
    taken = {value.name for value in (*graph.input, *graph.output)}  # a parameter may be called like one
    renamed = {
        tensor.name: short
        for tensor in graph.initializer
        if tensor.name.startswith(prefix) and (short := tensor.name.removeprefix(prefix)) not in taken
    }
    for tensor in graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    for value in graph.value_info:
        value.name = renamed.get(value.name, value.name)
    for node in _all_nodes(graph):
        node.input[:] = [renamed.get(name, name) for name in node.input]


def _all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Every node, those inside If and Loop bodies included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _all_nodes(attribute.g)


def _weight_of(node: NodeProto, weights: dict[str, onnx.TensorProto]) -> str | None:
    """The initializer that is the node's weight matrix or kernel, or None."""
    if node.op_type not in {"Conv", "Gemm", "MatMul"} or len(node.input) < 2:
        return None
    return node.input[1] if node.input[1] in weights else None


def _module_of(node: NodeProto, weights: dict[str, onnx.TensorProto], prefix: str) -> str:
    """The weight's name knows best: a Conv that absorbed a BatchNorm carries the BatchNorm's scope."""
    weight = _weight_of(node, weights)
    if weight and weight.endswith(".weight"):
        return weight.removesuffix(".weight")
    scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "[]")
    modules = ast.literal_eval(scopes)[:-1]  # the last scope is the operator itself
    scope = modules[-1] if modules else ""
    return "" if f"{scope}." == prefix or scope == _NOWHERE else scope.removeprefix(prefix)


def _unique(name: str, taken: set[str]) -> str:
    candidate, number = name, 2
    while candidate in taken:
        candidate, number = f"{name}_{number}", number + 1
    taken.add(candidate)
    return candidate


def _origin(node: NodeProto, module: str, weight: onnx.TensorProto, factorised: Set[str]) -> NodeOrigin:
    layer, _, last = module.rpartition(".")
    is_factor = layer in factorised and last in _FACTORS
    return NodeOrigin(
        node=node.name,
        module=layer if is_factor else module,
        factor=last if is_factor else "dense",
        op_type=node.op_type,
        **_fingerprint(weight),
    )


def refreshed_origins(model: ModelProto, origins: Sequence[NodeOrigin]) -> tuple[NodeOrigin, ...]:
    """Returns the origins of the nodes that are still there, with the shapes and digests of their weights now."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = {node.name: weights[name] for node in model.graph.node if (name := _weight_of(node, weights))}
    return tuple(
        origin.model_copy(update=_fingerprint(nodes[origin.node])) for origin in origins if origin.node in nodes
    )


def _fingerprint(weight: onnx.TensorProto) -> dict[str, object]:
    array = tensor_values(weight)
    return {"weight_shape": array.shape, "weight_sha256": hashlib.sha256(array.tobytes()).hexdigest()}
