"""Finding factors in a graph: two or three weighted nodes in a row, narrow in between."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import onnx_graphsurgeon as gs

from lrd_deploy.ranks.forms import largest_ranks
from lrd_deploy.records import LayerSignature, Tucker2
from lrd_deploy.rewrite.weighted_node import (
    FAMILY,
    check_weighted,
    has_plain_bias,
    in_channels,
    is_weighted,
    kernel_size,
    out_channels,
)

_FACTOR_NAMES = {("down", "up"), ("first", "core", "last")}


@dataclass(frozen=True)
class FactorChain:
    """`down, up` or `first, core, last`: nodes in data-flow order, each feeding the next and nothing else.

    `inside` names the node, an If or a Loop, whose body holds the chain; None in the graph itself.
    """

    nodes: tuple[gs.Node, ...]
    inside: gs.Node | None = None

    @property
    def layer(self) -> str | None:
        """The layer whose factors the nodes are named after, or None."""
        layers, factors = zip(*(node.name.rpartition(".")[::2] for node in self.nodes), strict=True)
        return layers[0] if len(set(layers)) == 1 and layers[0] and factors in _FACTOR_NAMES else None

    @property
    def name(self) -> str:
        """The chain's name in reports: its layer's, or the names of all its nodes."""
        return self.layer or " + ".join(node.name for node in self.nodes)

    @property
    def inner(self) -> tuple[gs.Variable, ...]:
        """The values between the nodes."""
        return tuple(node.outputs[0] for node in self.nodes[:-1])

    @property
    def ranks(self) -> tuple[int, ...]:
        """The widths of the inner values."""
        return tuple(out_channels(node) for node in self.nodes[:-1])

    @property
    def largest_ranks(self) -> tuple[int, ...]:
        """For each rank the one at which any layer of this shape has exact factors; more would be waste."""
        entry, exit_ = in_channels(self.nodes[0]), out_channels(self.nodes[-1])
        if len(self.nodes) == 2:
            by_down, by_up = (prod(kernel_size(node)) for node in self.nodes)
            return (min(entry * by_down, exit_ * by_up),)
        layer = LayerSignature(kind="conv2d", in_channels=entry, out_channels=exit_, kernel=kernel_size(self.nodes[1]))
        return largest_ranks(layer, Tucker2(rank_in=self.ranks[0], rank_out=self.ranks[1]))


def find_chains(graph: gs.Graph) -> list[FactorChain]:
    """Returns every run of two or three weighted nodes that can be a layer's factors, in the graph's order.

    By structure alone these are the maximal runs with a rank below the one at which they are exact. A run that is named
    after one layer's factors comes first and may be exact, so that no neighbour takes a factor from it. Whether a run
    may be changed is for `check_chain`, which refuses those inside If and Loop bodies; they come last.
    """
    within = [
        replace(chain, inside=chain.inside or node)
        for node in graph.nodes
        for body in node.subgraphs()
        for chain in find_chains(body)
    ]
    return _chains_of(graph) + within


def check_chain(graph: gs.Graph, chain: FactorChain) -> str | None:
    """Returns why no rule may touch this chain, or None."""
    if chain.inside is not None:
        return f"it is inside a body of '{chain.inside.name}', a node of type {chain.inside.op}"
    outputs = {id(value) for value in graph.outputs}
    for value in chain.inner:
        if id(value) in outputs:
            return f"the value between its factors is the graph output '{value.name}'"
        if len(value.outputs) > 1:
            return f"the value between its factors is read by {len(value.outputs)} nodes"
    for node in chain.nodes:
        refusal = check_weighted(node)
        if refusal:
            return refusal
        if not has_plain_bias(node):
            return f"the bias of '{node.name}' is no constant with one value per channel"
    return None


def _chains_of(graph: gs.Graph) -> list[FactorChain]:
    members = {id(node) for node in graph.nodes}  # a value's readers may sit in an If or Loop body
    runs = [_run_from(node, members) for node in graph.nodes if is_weighted(node)]
    found: dict[int, FactorChain] = {}
    used: set[int] = set()
    for accepts in (_is_named, _is_narrow):
        for position, run in enumerate(runs):
            chain = next((chain for chain in _beginnings(run, used) if accepts(chain)), None)
            if chain is not None:
                found[position] = chain
                used.update(id(node) for node in chain.nodes)
    return [found[position] for position in sorted(found)]


def ranks_in_words(ranks: tuple[int, ...]) -> str:
    """Returns "rank 6 is" or "ranks 6, 9 are", for the sentences of reports."""
    return f"rank {ranks[0]} is" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))} are"


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
    return is_weighted(consumer) and FAMILY[consumer.op] == FAMILY[node.op]


def _beginnings(run: list[gs.Node], used: set[int]) -> list[FactorChain]:
    """The run's first three and first two nodes, where no other chain has them and they span pixels as factors do."""
    candidates = [run[:length] for length in (3, 2) if len(run) >= length]
    return [
        FactorChain(tuple(nodes))
        for nodes in candidates
        if used.isdisjoint(id(node) for node in nodes) and _spans_like_factors(nodes)
    ]


def _spans_like_factors(nodes: list[gs.Node]) -> bool:
    """Of three only the middle one may span pixels; of two each axis is spanned by one at most."""
    kernels = [kernel_size(node) for node in nodes]
    if len(nodes) == 3:
        return kernels[0] == kernels[2] == (1, 1)
    return all(min(sizes) == 1 for sizes in zip(*kernels, strict=True))


def _is_named(chain: FactorChain) -> bool:
    return chain.layer is not None and _wastes_nothing(chain)


def _is_narrow(chain: FactorChain) -> bool:
    return _wastes_nothing(chain) and chain.ranks != chain.largest_ranks


def _wastes_nothing(chain: FactorChain) -> bool:
    return all(rank <= largest for rank, largest in zip(chain.ranks, chain.largest_ranks, strict=True))
