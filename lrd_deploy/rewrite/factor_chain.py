"""Finding factors in a graph by their structure alone: two or three weighted nodes in a row, narrow in between."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

# Nodes that can follow each other as factors: convolutions, or matrix products of either spelling.
_FACTOR_NAMES = {("down", "up"), ("first", "core", "last")}
_FAMILY = {"Conv": "convolution", "Gemm": "product", "MatMul": "product"}
Array = NDArray[np.floating]


@dataclass(frozen=True)
class FactorChain:
    """`down, up` or `first, core, last`: nodes in data-flow order, each feeding the next and nothing else."""

    nodes: tuple[gs.Node, ...]

    @property
    def name(self) -> str:
        """The chain's name in reports: the layer's where its nodes are named after its factors, else all of theirs."""
        layers, factors = zip(*(node.name.rpartition(".")[::2] for node in self.nodes), strict=True)
        if len(set(layers)) == 1 and layers[0] and factors in _FACTOR_NAMES:
            return layers[0]
        return " + ".join(node.name for node in self.nodes)

    @property
    def inner(self) -> tuple[gs.Variable, ...]:
        """The values between the nodes."""
        return tuple(node.outputs[0] for node in self.nodes[:-1])

    @property
    def ranks(self) -> tuple[int, ...]:
        """The widths of the inner values."""
        return tuple(out_channels(node) for node in self.nodes[:-1])


def find_chains(graph: gs.Graph) -> list[FactorChain]:
    """Returns every maximal run of two or three weighted nodes that is narrower inside than at both ends.

    Whether a run may be changed is for `check_chain`; nodes inside If and Loop bodies are not looked at.
    """
    members = {id(node) for node in graph.nodes}  # a value's readers may sit in an If or Loop body
    chains: list[FactorChain] = []
    used: set[int] = set()
    for node in graph.nodes:
        if id(node) in used or not is_weighted(node):
            continue
        run = _run_from(node, members)
        for length in (3, 2):
            candidate = tuple(run[:length])
            if len(candidate) == length and _is_narrow_inside(candidate):
                chains.append(FactorChain(candidate))
                used.update(id(member) for member in candidate)
                break
    return chains


def check_chain(graph: gs.Graph, chain: FactorChain) -> str | None:
    """Returns why no rule may touch this chain, or None."""
    outputs = {id(value) for value in graph.outputs}
    for value in chain.inner:
        if id(value) in outputs:
            return f"the value between its factors is the graph output '{value.name}'"
        if len(value.outputs) > 1:
            return f"the value between its factors is read by {len(value.outputs)} nodes"
    for node in chain.nodes:
        if not _carries_channels_through(node):
            return f"'{node.name}' scales or transposes its input"
        if not _bias_is_plain(node):
            return f"the bias of '{node.name}' is no constant with one value per channel"
        if node.op == "Conv" and node.attrs.get("group", 1) != 1:
            return f"'{node.name}' is a grouped convolution"
        if weight(node).dtype not in (np.float16, np.float32, np.float64):
            return f"the weight of '{node.name}' is {weight(node).dtype}, which this rule does not handle"
    return None


def is_weighted(node: gs.Node) -> bool:
    """True for a convolution or matrix product whose second input is a constant of a full layer's shape."""
    if node.op not in _FAMILY or len(node.inputs) < 2 or not isinstance(node.inputs[1], gs.Constant):
        return False
    return len(node.inputs[1].shape) == (4 if node.op == "Conv" else 2)


def weight(node: gs.Node) -> Array:
    """Returns the weight as stored: (out, in, kh, kw) for Conv, else a matrix in the node's own orientation."""
    return np.asarray(node.inputs[1].values)


def matrix(node: gs.Node) -> Array:
    """Returns a pointwise node's weight as (out, in), whatever its orientation in the node."""
    array = weight(node)
    if node.op == "Conv":
        return array[:, :, 0, 0]
    return array if node.op == "Gemm" and node.attrs.get("transB", 0) else array.T


def set_matrix(node: gs.Node, array: Array, name: str) -> None:
    """Gives a pointwise node a weight from (out, in), in the node's own orientation, under a new name."""
    if node.op == "Conv":
        array = array[:, :, None, None]  # (out, in, 1, 1)
    elif not (node.op == "Gemm" and node.attrs.get("transB", 0)):
        array = array.T  # (in, out)
    node.inputs[1] = gs.Constant(name, np.ascontiguousarray(array))


def bias(node: gs.Node) -> Array | None:
    """Returns the bias of a node that `check_chain` passed, or None."""
    return np.asarray(node.inputs[2].values) if _has_bias(node) else None


def in_channels(node: gs.Node) -> int:
    """Returns the width of the node's input."""
    return weight(node).shape[1] if node.op == "Conv" else matrix(node).shape[1]


def out_channels(node: gs.Node) -> int:
    """Returns the width of the node's output."""
    return weight(node).shape[0] if node.op == "Conv" else matrix(node).shape[0]


def is_pointwise(node: gs.Node) -> bool:
    """True where the node is one matrix, applied at every position."""
    return node.op != "Conv" or weight(node).shape[2:] == (1, 1)


def _run_from(node: gs.Node, members: set[int]) -> list[gs.Node]:
    """The node and at most two followers of its kind, each reached through the data input."""
    run = [node]
    while len(run) < 3:
        consumers = run[-1].outputs[0].outputs
        follower = next(
            (consumer for consumer in consumers if id(consumer) in members and _may_follow(consumer, node)), None
        )
        if follower is None or follower.inputs[0] is not run[-1].outputs[0]:
            break
        run.append(follower)
    return run


def _may_follow(consumer: gs.Node, node: gs.Node) -> bool:
    return is_weighted(consumer) and _FAMILY[consumer.op] == _FAMILY[node.op]


def _is_narrow_inside(nodes: tuple[gs.Node, ...]) -> bool:
    if nodes[0].op == "Conv" and len(nodes) == 3 and not (is_pointwise(nodes[0]) and is_pointwise(nodes[2])):
        return False
    if nodes[0].op == "Conv" and len(nodes) == 2 and not all(is_pointwise(node) for node in nodes):
        return False
    entry, exit_ = in_channels(nodes[0]), out_channels(nodes[-1])
    ranks = [out_channels(node) for node in nodes[:-1]]
    if len(nodes) == 3:
        return ranks[0] <= entry and ranks[1] <= exit_ and (ranks[0] < entry or ranks[1] < exit_)
    return ranks[0] < min(entry, exit_)


def _has_bias(node: gs.Node) -> bool:
    return len(node.inputs) > 2 and node.inputs[2].name != ""


def _bias_is_plain(node: gs.Node) -> bool:
    if not _has_bias(node):
        return True
    return isinstance(node.inputs[2], gs.Constant) and tuple(node.inputs[2].shape) == (out_channels(node),)


def _carries_channels_through(node: gs.Node) -> bool:
    if node.op != "Gemm":
        return True
    return (
        node.attrs.get("alpha", 1.0) == 1.0 and node.attrs.get("beta", 1.0) == 1.0 and not node.attrs.get("transA", 0)
    )
