"""`decompose_node`: replace a weighted node by the factors of a chosen form. The one rule that approximates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from lrd_deploy.decompose.factorize import Factors, factors_of
from lrd_deploy.ranks.forms import FactorShape, factor_shapes, fits, largest_ranks, ranks_of
from lrd_deploy.records import Choice, KeepDense, LayerSignature
from lrd_deploy.rewrite.factor_chain import (
    FACTOR_DTYPES,
    Array,
    carries_channels_through,
    in_channels,
    is_weighted,
    matrix,
    out_channels,
    set_matrix,
    weight,
)
from lrd_deploy.rewrite.placement import NEUTRAL, Placements, auto_pad, place_, placements


@dataclass(frozen=True)
class ChosenNode:
    """A name that a form was chosen for; `node` is None where the graph has no node of that name."""

    graph: gs.Graph
    name: str
    node: gs.Node | None


@dataclass(frozen=True)
class DecomposeNode:
    """Turns a weighted node into the factors of the form that was chosen for it.

    pattern:  x ─ NAME ─ y
    rewrite:  x ─ NAME.down ─ NAME.up ─ y        or        x ─ NAME.first ─ NAME.core ─ NAME.last ─ y

    The bias goes to the last factor; stride, padding and dilation go, axis by axis, to the factor that places the axis.

    Attributes:
        choices: the form, by the node's name; a name that the graph does not have is refused as a node would be.
        factorise: gives the factors of a weight: (out, in) of a product, (out, in, kh, kw) of a convolution.

    Limits: the output moves as far as the factors are off. Nodes that share a weight get factors of their own each;
    nodes inside If and Loop bodies are not looked at.
    """

    choices: Mapping[str, Choice]
    factorise: Callable[[Array, Choice], Factors] = factors_of
    name: str = "decompose_node"

    def match(self, graph: gs.Graph) -> list[ChosenNode]:
        """Every name that a form was chosen for, in the order of the choices."""
        nodes = {node.name: node for node in graph.nodes}
        return [ChosenNode(graph, name, nodes.get(name)) for name in self.choices]

    def check(self, place: ChosenNode) -> str | None:
        """Refuses what is no plain layer, and a form or a rank that the layer cannot have."""
        if place.node is None:
            return "the graph has no node of that name outside of If and Loop bodies"
        return _refused_node(place.node) or _refused_choice(place.node, self.choices[place.name])

    def rewrite(self, place: ChosenNode) -> str:
        """Makes the node its own last factor, which keeps bias and output, and puts the others before it."""
        last, choice = place.node, self.choices[place.name]
        shapes = factor_shapes(in_channels(last), out_channels(last), choice)
        factors = self.factorise(weight(last) if last.op == "Conv" else matrix(last), choice)
        dtype, dense = weight(last).dtype, placements(last) if last.op == "Conv" else None
        nodes = (*_put_before_(last, place, shapes[:-1]), last)
        for node, shape in zip(nodes, shapes, strict=True):
            node.name = f"{place.name}.{shape.name}"
            _set_weight_(node, getattr(factors, shape.name).astype(dtype))
            if dense is not None:
                place_(node, _placed(dense, shape))
        return f"factorised as {choice}"


def _refused_node(node: gs.Node) -> str | None:
    """Why a node is no layer that factors could stand for, or None."""
    if node.op not in ("Conv", "Gemm", "MatMul"):
        return f"it is a {node.op}, neither a convolution nor a matrix product"
    if not is_weighted(node):
        return f"its second input is no constant weight of {4 if node.op == 'Conv' else 2} axes"
    if node.attrs.get("group", 1) != 1:
        return "it is a grouped convolution"
    if not carries_channels_through(node):
        return "it scales or transposes its input"
    if node.op == "Conv" and auto_pad(node) not in ("NOTSET", "VALID"):
        return f"its auto_pad is {auto_pad(node)}, which leaves the padding to the input's size"
    if weight(node).dtype not in FACTOR_DTYPES:
        return f"its weight is {weight(node).dtype}, which this rule does not handle"
    if not np.isfinite(weight(node)).all():
        return "its weight has values that are NaN or infinite"
    return None


def _refused_choice(node: gs.Node, choice: Choice) -> str | None:
    """Why a layer cannot have the form or its ranks, or None."""
    if isinstance(choice, KeepDense):
        return "the choice is to keep it dense"
    signature = LayerSignature(
        kind="conv2d" if node.op == "Conv" else "linear",
        in_channels=in_channels(node),
        out_channels=out_channels(node),
        kernel=tuple(weight(node).shape[2:]) if node.op == "Conv" else (1, 1),
    )
    if not fits(signature, choice):
        kind = "a k×k convolution" if not signature.pointwise else f"a {'1×1 ' * (node.op == 'Conv')}{node.op}"
        return f"{choice} is no form for {kind}"
    for rank, largest in zip(ranks_of(choice), largest_ranks(signature, choice), strict=True):
        if rank > largest:
            return f"a rank of {rank} is more than the {largest} at which its form is exact"
    return None


def _put_before_(last: gs.Node, place: ChosenNode, shapes: tuple[FactorShape, ...]) -> list[gs.Node]:
    """Adds nodes of the same kind, one for each shape, between the node and its input."""
    nodes = []
    for shape in shapes:
        output = gs.Variable(f"{place.name}.{shape.name}.output", dtype=weight(last).dtype)
        node = gs.Node(last.op, attrs=dict(last.attrs), inputs=list(last.inputs[:2]), outputs=[output])
        last.inputs[0] = output
        nodes.append(node)
    place.graph.nodes.extend(nodes)
    return nodes


def _set_weight_(node: gs.Node, factor: Array) -> None:
    """Gives a factor its weight, under a name of its own: what the dense weight's other readers see stays."""
    name = f"{node.name}.weight"
    if factor.ndim == 2:
        set_matrix(node, factor, name)
    else:
        node.inputs[1] = gs.Constant(name, np.ascontiguousarray(factor))


def _placed(dense: Placements, shape: FactorShape) -> Placements:
    height, width = (axis if here else NEUTRAL for axis, here in zip(dense, shape.places, strict=True))
    return height, width
