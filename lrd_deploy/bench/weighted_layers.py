"""The layers of an ONNX graph as a profile has them: a weighted node each, or the factors of one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from onnx import ModelProto

from lrd_deploy.rewrite.apply import graph_of
from lrd_deploy.rewrite.factor_chain import find_chains
from lrd_deploy.rewrite.weighted_node import is_weighted

_FACTORS = frozenset({"down", "up", "first", "core", "last"})


@dataclass(frozen=True)
class WeightedLayer:
    """A layer by name, with the names of the nodes that have its weights, in data-flow order.

    `is_chain`: they are a factor chain, which rewrite rules can change under this name.
    """

    name: str
    nodes: tuple[str, ...]
    is_chain: bool = False


def weighted_layers(model: ModelProto) -> tuple[WeightedLayer, ...]:
    """Returns the Conv, Gemm and MatMul nodes with constant weights, factors of one layer together, in graph order.

    Factors are found as rewrite rules find them, and where something stands between them by the names that their
    layer gives them (`fc.down`, `fc.up`). Nodes in the bodies of If and Loop are left out.

    Raises:
        InputError: an initializer is a graph input too.
    """
    graph = graph_of(model)
    layer_of: dict[str, str] = {}
    chained: set[str] = set()
    for chain in find_chains(graph):
        if chain.inside is None:
            layer_of |= {node.name: chain.name for node in chain.nodes}
            chained.add(chain.name)
    single = [node.name for node in graph.nodes if is_weighted(node) and node.name not in layer_of]
    shared = Counter(filter(None, map(_factor_of, single)))
    for name in single:
        owner = _factor_of(name)
        layer_of[name] = owner if owner and shared[owner] > 1 and owner not in chained else name
    members: dict[str, list[str]] = {}
    for node in graph.nodes:
        if node.name in layer_of:
            members.setdefault(layer_of[node.name], []).append(node.name)
    return tuple(WeightedLayer(name, tuple(nodes), name in chained) for name, nodes in members.items())


def _factor_of(node: str) -> str | None:
    """The layer that a node calls itself a factor of, or None."""
    layer, _, factor = node.rpartition(".")
    return layer if layer and factor in _FACTORS else None
