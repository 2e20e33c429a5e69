"""A graph after its conversion, and the making of one from new nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from lrd_deploy.precision.values import read_values


class Conversion(NamedTuple):
    """A converted graph; `kept` are reasons by position in the nodes it came from, `converted` the other positions."""

    model: ModelProto
    kept: dict[int, str]
    converted: tuple[int, ...]


def with_nodes(model: ModelProto, nodes: Sequence[NodeProto], initializers: Sequence[TensorProto]) -> ModelProto:
    """Returns a copy of the model with these nodes and more initializers, and without what nobody reads any more."""
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    del graph.node[:]
    del graph.value_info[:]  # inferred again; what they said may have changed
    graph.node.extend(nodes)
    graph.initializer.extend(initializers)
    _prune_(graph)
    return copy


def _prune_(graph: GraphProto) -> None:
    """Drops nodes and initializers that lead nowhere; what a caller may feed stays."""
    while True:
        read = read_values(graph)
        dead = [node for node in graph.node if node.output and read.isdisjoint(node.output)]
        if not dead:
            break
        for node in dead:
            graph.node.remove(node)
    fed = {value.name for value in graph.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read | fed]
    del graph.initializer[:]
    graph.initializer.extend(kept)
