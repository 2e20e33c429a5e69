"""`truncate_rank`: lower every rank to the next multiple of the quantum, losing as little as that can."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from lrd_deploy.decompose.factorize import Factors, relative_error
from lrd_deploy.decompose.lower_rank import lowered
from lrd_deploy.rewrite.chain_weights import (
    carried_bias,
    chain_factors,
    check_carried_bias,
    check_finite_weights,
    set_chain_factors,
)
from lrd_deploy.rewrite.factor_chain import FactorChain, check_chain, find_chains, ranks_in_words
from lrd_deploy.rewrite.rule import Change
from lrd_deploy.rewrite.weighted_node import bias, drop_bias, set_bias, weight


@dataclass(frozen=True)
class TruncateRank:
    """Truncates the inner channels of a factor chain to multiples of `quantum`.

    pattern:  x ─ down (r×in) ─ up (out×r) ─ y         whatever pixels either spans; or first ─ core ─ last
    rewrite:  x ─ down (r'×in) ─ up (out×r') ─ y       r' the next multiple below

    Not exact: the new factors' product is the nearest of that rank to the old ones', and the change says how near, as
    a share of the product's Frobenius norm. Inner biases move to the last node, where they cost nothing; they lose
    nothing. `only` names the chains to truncate; None truncates all. `lower` makes the factors of lower ranks.
    """

    quantum: int
    only: frozenset[str] | None = None
    lower: Callable[[Factors, Sequence[int]], Factors] = lowered
    name: str = "truncate_rank"

    def match(self, graph: gs.Graph) -> list[FactorChain]:
        """The chains asked for."""
        return [chain for chain in find_chains(graph) if self.only is None or chain.name in self.only]

    def check(self, graph: gs.Graph, chain: FactorChain) -> str | None:
        """Refuses ranks that are multiples already or below the first one, and biases that cannot move."""
        refusal = check_chain(graph, chain)
        if refusal:
            return refusal
        if all(rank % self.quantum == 0 for rank in chain.ranks):
            return f"its {ranks_in_words(chain.ranks)} already on the quantum {self.quantum}"
        if min(chain.ranks) < self.quantum:
            return f"a rank of {min(chain.ranks)} is below the quantum {self.quantum}"
        return check_finite_weights(chain) or check_carried_bias(chain) or _homeless_bias(chain)

    def rewrite(self, chain: FactorChain) -> Change:
        """Gives every node its part of the truncated product."""
        before, ranks = chain_factors(chain), chain.ranks
        total, suffix = carried_bias(chain), f"truncated_to_{self.quantum}"
        after = self.lower(before, [rank // self.quantum * self.quantum for rank in ranks])
        has_inner_bias = any(bias(node) is not None for node in chain.nodes[:-1])
        set_chain_factors(chain, after, suffix=suffix)
        if has_inner_bias:
            last = chain.nodes[-1]
            set_bias(last, total.astype(weight(last).dtype), f"{last.name}.bias_{suffix}")
            for node in chain.nodes[:-1]:
                drop_bias(node)
        error = relative_error(before.product(), after)
        text = f"{ranks_in_words(ranks)} truncated to {', '.join(map(str, chain.ranks))}, relative error {error:.2g}"
        return Change(text, relative_error=error)


def _homeless_bias(chain: FactorChain) -> str | None:
    """A MatMul cannot take in a bias from before it."""
    biased = next((node for node in chain.nodes[:-1] if bias(node) is not None), None)
    if biased is not None and chain.nodes[-1].op == "MatMul":
        return f"'{biased.name}' has a bias, which '{chain.nodes[-1].name}', a MatMul, cannot take over"
    return None
