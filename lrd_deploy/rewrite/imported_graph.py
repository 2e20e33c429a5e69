"""Between ONNX and graphsurgeon: what it cannot read is told, and what it would drop is put back."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_graphsurgeon as gs
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto
from onnx_graphsurgeon.util.exception import OnnxGraphSurgeonException

from lrd_deploy.errors import InputError
from lrd_deploy.export.skeleton import in_one_line

# Kinds of attributes that graphsurgeon leaves out with a warning.
_DROPPED = {
    AttributeProto.TENSORS,
    AttributeProto.GRAPHS,
    AttributeProto.SPARSE_TENSOR,
    AttributeProto.SPARSE_TENSORS,
    AttributeProto.TYPE_PROTO,
    AttributeProto.TYPE_PROTOS,
}


def import_graph(model: ModelProto) -> gs.Graph:
    """Returns a model as graphsurgeon's graph.

    Raises:
        InputError: graphsurgeon cannot read it, or would lose some of it for good.
    """
    for node in model.graph.node:
        for inner in _nodes_within(node):
            if any(attribute.type in _DROPPED for attribute in inner.attribute):
                raise _unreadable(
                    model, f"an attribute of '{inner.name or inner.op_type}' inside '{node.name}' that it drops"
                )
    try:
        return gs.import_onnx(model)
    except (OnnxGraphSurgeonException, UnicodeDecodeError, KeyError, TypeError, ValueError) as exc:
        raise _unreadable(model, in_one_line(exc)) from exc


def restore_attributes_(before: GraphProto, after: GraphProto) -> None:
    """Gives nodes that are still there the attributes that graphsurgeon dropped."""
    nodes = {node.name: node for node in before.node}
    for node in after.node:
        source = nodes.get(node.name)
        if source is not None and source.op_type == node.op_type:
            node.attribute.extend(attribute for attribute in source.attribute if attribute.type in _DROPPED)


def _nodes_within(node: NodeProto) -> Iterator[NodeProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            for inner in attribute.g.node:
                yield inner
                yield from _nodes_within(inner)


def _unreadable(model: ModelProto, found: str) -> InputError:
    return InputError(
        f"rewriting the graph '{model.graph.name}'",
        found=found,
        accepted="a graph that onnx-graphsurgeon can read",
        remedy="report this with the model; it can still be measured, verified and converted",
    )
