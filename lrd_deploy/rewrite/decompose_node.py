"""`decompose_node`: give dense nodes low-rank factors, for those who have an ONNX file and no PyTorch model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from lrd_deploy.decompose.factorize import Factors, factors_of
from lrd_deploy.ranks.forms import FactorShape, factor_shapes, fits, largest_ranks, ranks_of
from lrd_deploy.records import Choice, KeepDense, LayerSignature
from lrd_deploy.rewrite.rule import Change
from lrd_deploy.rewrite.weighted_node import (
    FAMILY,
    Array,
    check_weighted,
    detach,
    in_channels,
    is_weighted,
    kernel_size,
    out_channels,
    set_weight,
    weight,
)
from lrd_deploy.rewrite.window import Window, set_windows, windows


@dataclass(frozen=True)
class ChosenNode:
    """A name with the form chosen for it.

    `node` is None where the graph has no node of that name; `taken` are its factors' names that other nodes have.
    """

    graph: gs.Graph
    name: str
    choice: Choice
    node: gs.Node | None
    taken: tuple[str, ...]


@dataclass(frozen=True)
class DecomposeNode:
    """Turns dense nodes into factor chains of the forms chosen for them.

    pattern:  x ─ NAME ─ y
    rewrite:  x ─ NAME.down ─ NAME.up ─ y      or  x ─ NAME.first ─ NAME.core ─ NAME.last ─ y

    Not exact below full rank: outputs move by what the factors leave out. The last factor has the bias; kernel, stride,
    padding and dilation are where `ranks.forms` places them. `choices` are by node name; a choice to keep a node dense
    leaves it alone. `factorise` makes the factors from a weight (out, in) or (out, in, kh, kw); `factorise_of` has what
    makes those of single nodes instead, by their names.
    """

    choices: Mapping[str, Choice]
    factorise: Callable[[Array, Choice], Factors] = factors_of
    factorise_of: Mapping[str, Callable[[Array, Choice], Factors]] = field(default_factory=dict)
    name: str = "decompose_node"

    def match(self, graph: gs.Graph) -> list[ChosenNode]:
        """Every name with a choice: those of nodes in the graph's order, then those that the graph does not have.

        In that order a value that many nodes read loses its first reader each time, which takes no search.
        """
        nodes = {node.name: node for node in graph.nodes if node.outputs}  # without those that a rule detached
        names = [name for name in nodes if name in self.choices]
        names += [name for name in self.choices if name not in nodes]
        chosen = {name: choice for name in names if not isinstance(choice := self.choices[name], KeepDense)}
        return [
            ChosenNode(graph, name, choice, nodes.get(name), _taken(name, choice, nodes))
            for name, choice in chosen.items()
        ]

    def check(self, _graph: gs.Graph, chosen: ChosenNode) -> str | None:
        """Refuses names that no node has, nodes that are no plain layer, and forms that do not fit the node."""
        node = chosen.node
        if node is None:
            return _nowhere(chosen)
        if node.op not in FAMILY:
            return f"it is a {node.op}, and only Conv, Gemm and MatMul have factors"
        if not is_weighted(node):
            return "its second input is no initializer of a matrix or a two-dimensional kernel"
        if chosen.taken:
            return f"the graph has a node '{chosen.taken[0]}' already"
        refusal = check_weighted(node) or _unfit(node, chosen.choice)
        if refusal:
            return refusal
        return None if np.isfinite(weight(node)).all() else "its weight has values that are NaN or infinite"

    def rewrite(self, chosen: ChosenNode) -> Change:
        """Puts the factors between the node's input and its output; the node itself goes."""
        dense, choice = chosen.node, chosen.choice
        factors = self.factorise_of.get(chosen.name, self.factorise)(weight(dense), choice)
        nodes, source = [], dense.inputs[0]
        for shape in factor_shapes(in_channels(dense), out_channels(dense), choice):
            nodes.append(_factor_node(dense, shape, getattr(factors, shape.name), source))
            source = nodes[-1].outputs[0]
        nodes[-1].inputs.extend(dense.inputs[2:])
        output = dense.outputs[0]
        detach(dense)
        nodes[-1].outputs = [output]
        chosen.graph.nodes.extend(nodes)
        return Change(f"dense to {choice}")


def _taken(name: str, choice: Choice, nodes: Mapping[str, gs.Node]) -> tuple[str, ...]:
    factors = (f"{name}.{shape.name}" for shape in factor_shapes(1, 1, choice))
    return tuple(factor for factor in factors if factor in nodes)


def _nowhere(chosen: ChosenNode) -> str:
    instead = f", but has its factor '{chosen.taken[0]}'" if chosen.taken else ""
    return f"the graph has no node of that name outside If and Loop bodies{instead}"


def _unfit(node: gs.Node, choice: Choice) -> str | None:
    """Why a node cannot have that form or rank, or None."""
    layer = LayerSignature(
        kind="conv2d" if node.op == "Conv" else "linear",
        in_channels=in_channels(node),
        out_channels=out_channels(node),
        kernel=kernel_size(node),
    )
    if not fits(layer, choice):
        takes = "svd" if layer.pointwise else "channel_svd, spatial_svd or tucker2"
        return f"{choice} does not fit its kernel of {layer.kernel[0]}×{layer.kernel[1]}, which takes {takes}"
    for rank, largest in zip(ranks_of(choice), largest_ranks(layer, choice), strict=True):
        if rank > largest:
            return f"a rank of {rank} would exceed {largest}, at which factors of its shape are exact"
    return None


def _factor_node(dense: gs.Node, shape: FactorShape, array: Array, source: gs.Tensor) -> gs.Node:
    """A node of the dense one's kind, with the factor's weight and windows, from `source` to a value of its own."""
    dtype, name = weight(dense).dtype, f"{dense.name}.{shape.name}"
    node = gs.Node(
        op=dense.op,
        name=name,
        attrs=dict(dense.attrs),
        inputs=[source, gs.Variable.empty()],
        outputs=[gs.Variable(f"{name}.output", dtype=dtype)],
        domain=dense.domain,
    )
    set_weight(node, array.astype(dtype, copy=False), f"{name}.weight")
    if node.op == "Conv":
        height, width = (
            window if placed else Window() for window, placed in zip(windows(dense), shape.places, strict=True)
        )
        set_windows(node, (height, width))
    return node
