"""How much of a graph was converted: of its nodes, its multiply–accumulates and its weights."""

from __future__ import annotations

from collections.abc import Collection
from math import prod

from onnx import ModelProto, NodeProto

from lrd_deploy.precision.values import GraphValues
from lrd_deploy.records import ConvertedShare


def converted_share(model: ModelProto, converted: Collection[int], nodes: int) -> ConvertedShare:
    """Returns the share of a graph that these positions are.

    Args:
        model: the graph before conversion.
        converted: positions of its nodes.
        nodes: how many handle float32 values.
    """
    values, chosen = GraphValues.of(model), set(converted)
    sizes = [(place, *_size(node, values)) for place, node in enumerate(model.graph.node)]
    macs, weights = (_share([(place, size[which]) for place, *size in sizes], chosen) for which in (0, 1))
    return ConvertedShare(nodes=nodes, converted=len(chosen), macs=macs, weights=weights)


def _share(sizes: list[tuple[int, int]], chosen: set[int]) -> float:
    total = sum(size for _, size in sizes)
    return sum(size for place, size in sizes if place in chosen) / total if total else 0.0


def _size(node: NodeProto, values: GraphValues) -> tuple[int, int]:
    """Multiply–accumulates of one sample, and values of the weight; 0 of a node without one."""
    tensor = values.weight_of(node)
    if tensor is None:
        return 0, 0
    weight = prod(tensor.dims)
    shape = values.shapes.get(node.output[0], ())
    places = shape[2:] if node.op_type == "Conv" else shape[1:-1]  # without batch and channels
    return weight * prod(size or 1 for size in places), weight
