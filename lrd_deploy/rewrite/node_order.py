"""Bringing the nodes of a graph into an order in which each comes after those that it reads from."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_graphsurgeon as gs


def in_data_flow_order(graph: gs.Graph) -> list[gs.Node]:
    """Returns a graph's nodes so that each comes after its producers, and else in the order in which they are.

    graphsurgeon's own `toposort` calls itself for every node in a row, which Python ends at a thousand.
    """
    members = {id(node): node for node in graph.nodes}
    order: list[gs.Node] = []
    entered: set[int] = set()
    for first in graph.nodes:
        waiting = [(first, _producers(first, members))] if id(first) not in entered else []
        entered.add(id(first))
        while waiting:
            node, producers = waiting[-1]
            producer = next((each for each in producers if id(each) not in entered), None)
            if producer is None:
                order.append(node)
                waiting.pop()
            else:
                entered.add(id(producer))
                waiting.append((producer, _producers(producer, members)))
    return order


def _producers(node: gs.Node, members: dict[int, gs.Node]) -> Iterator[gs.Node]:
    """The nodes of this graph that a node, or something in its bodies, reads from."""
    read = list(node.inputs)
    for body in node.subgraphs(recursive=True):
        read += [tensor for inner in body.nodes for tensor in inner.inputs]
        read += body.outputs
    return (members[id(source)] for tensor in read for source in tensor.inputs if id(source) in members)
