"""`pad_rank`: raise every rank to the next multiple of the quantum, with zeros. The output does not change."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import onnx_graphsurgeon as gs

from lrd_deploy.rewrite.factor_chain import FactorChain, check_chain, find_chains, ranks_in_words
from lrd_deploy.rewrite.rule import Change
from lrd_deploy.rewrite.weighted_node import Array, bias, set_bias, set_weight, weight


@dataclass(frozen=True)
class PadRank:
    """Pads the inner channels of a factor chain to multiples of `quantum`.

    pattern:  x ─ down (r×in) ─ up (out×r) ─ y         whatever pixels either spans; or first ─ core ─ last
    rewrite:  x ─ down (r'×in) ─ up (out×r') ─ y       r' the next multiple; new rows and columns are zero

    Exact: the new channels are zero and meet zero weights, so every sum gains only zeros. `only` names the chains to
    pad; None pads all.
    """

    quantum: int
    only: frozenset[str] | None = None
    name: str = "pad_rank"

    def match(self, graph: gs.Graph) -> list[FactorChain]:
        """The chains asked for."""
        return [chain for chain in find_chains(graph) if self.only is None or chain.name in self.only]

    def check(self, graph: gs.Graph, chain: FactorChain) -> str | None:
        """Refuses ranks that are multiples already, and ranks that padding would take past exact factors."""
        refusal = check_chain(graph, chain)
        if refusal:
            return refusal
        if all(rank % self.quantum == 0 for rank in chain.ranks):
            return f"its {ranks_in_words(chain.ranks)} already on the quantum {self.quantum}"
        for rank, largest in zip(self._padded(chain), chain.largest_ranks, strict=True):
            if rank > largest:
                return f"a rank of {rank} would exceed {largest}, at which factors of its shape are exact"
        return None

    def rewrite(self, chain: FactorChain) -> Change:
        """Pads every weight of the chain, and the biases of its inner nodes."""
        before = chain.ranks
        widths = (None, *self._padded(chain), None)
        for node, (width_in, width_out) in zip(chain.nodes, pairwise(widths), strict=True):
            _pad_node(node, width_in, width_out, suffix=f"padded_to_{self.quantum}")
        for value in chain.inner:
            value.shape = None  # inferred again after the rewrite
        return Change(f"{ranks_in_words(before)} padded to {', '.join(map(str, chain.ranks))}")

    def _padded(self, chain: FactorChain) -> tuple[int, ...]:
        return tuple(-(-rank // self.quantum) * self.quantum for rank in chain.ranks)


def _pad_node(node: gs.Node, width_in: int | None, width_out: int | None, *, suffix: str) -> None:
    """Grows a node's weight, and its bias, to these widths; None leaves that side as it is."""
    set_weight(node, _grown(weight(node), width_out, width_in), f"{node.name}.weight_{suffix}")
    if width_out is not None and bias(node) is not None:
        set_bias(node, _grown(bias(node), width_out), f"{node.name}.bias_{suffix}")


def _grown(array: Array, *widths: int | None) -> Array:
    """Appends zeros along the leading axes until they have these widths."""
    more = [(0, 0 if width is None else width - size) for width, size in zip(widths, array.shape, strict=False)]
    return np.pad(array, more + [(0, 0)] * (array.ndim - len(more)))
