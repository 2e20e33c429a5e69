"""`merge_factors`: multiply factors back into the one layer they stand for, where the factors do not pay."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from lrd_deploy.rewrite.chain_weights import carried_bias, chain_factors, check_carried_bias, check_finite_weights
from lrd_deploy.rewrite.factor_chain import FactorChain, check_chain, find_chains
from lrd_deploy.rewrite.rule import Change
from lrd_deploy.rewrite.weighted_node import Array, detach, set_weight, weight
from lrd_deploy.rewrite.window import Window, Windows, pads_in_one_way, set_windows, windows


@dataclass(frozen=True)
class MergeFactors:
    """Turns a factor chain into one node.

    pattern:  x ─ down ─ up ─ y            x ─ first ─ core ─ last ─ y
    rewrite:  x ─ up·down ─ y              x ─ core ×₁ last ×₂ first ─ y

    Each spatial axis keeps the kernel, stride, padding and dilation of the factor that places it. Exact up to rounding:
    the product is formed in float64. `only` names the chains to merge; None merges all.
    """

    only: frozenset[str] | None = None
    name: str = "merge_factors"

    def match(self, graph: gs.Graph) -> list[FactorChain]:
        """The chains asked for."""
        return [chain for chain in find_chains(graph) if self.only is None or chain.name in self.only]

    def check(self, graph: gs.Graph, chain: FactorChain) -> str | None:
        """Refuses a bias that padding would cut at the borders, windows that no single node has, and NaN in weights."""
        refusal = check_chain(graph, chain) or check_carried_bias(chain) or _clashing_windows(chain)
        return refusal or check_finite_weights(chain)

    def rewrite(self, chain: FactorChain) -> Change:
        """Gives one node the product, the windows of all, and the chain's ends; the others go."""
        name, ranks, dtype = chain.name, chain.ranks, weight(chain.nodes[-1]).dtype
        product, merged_bias, placed = _product(chain), carried_bias(chain), _windows(chain)
        source, output = chain.nodes[0].inputs[0], chain.nodes[-1].outputs[0]
        kept = next((node for node in chain.nodes if node.op == "Gemm"), chain.nodes[0])  # a MatMul holds no bias
        set_weight(kept, product.astype(dtype), f"{name}.merged_weight")
        constants = [kept.inputs[1]]
        if merged_bias is not None:
            constants.append(gs.Constant(f"{name}.merged_bias", merged_bias.astype(dtype)))
        for node in chain.nodes:
            detach(node)
        kept.inputs, kept.outputs, kept.name = [source, *constants], [output], name
        if kept.op == "Conv":
            set_windows(kept, placed)
        return Change(f"{len(chain.nodes)} factors of rank {', '.join(map(str, ranks))} merged")


def _clashing_windows(chain: FactorChain) -> str | None:
    for axis, along in zip(("height", "width"), _by_axis(chain), strict=True):
        placing = [node.name for node, window in zip(chain.nodes, along, strict=True) if window != Window()]
        if len(placing) > 1:
            return f"'{placing[0]}' and '{placing[1]}' both span, stride or pad along the {axis}"
    if not pads_in_one_way(_windows(chain)):
        return "its factors pad by auto_pad along one axis and in another way along the other"
    return None


def _windows(chain: FactorChain) -> Windows:
    """The merged node's: along each axis that of the factor that places it."""
    height, width = (next((window for window in along if window != Window()), Window()) for along in _by_axis(chain))
    return height, width


def _by_axis(chain: FactorChain) -> tuple[tuple[Window, ...], tuple[Window, ...]]:
    """All windows along the height, and all along the width."""
    heights, widths = zip(*(windows(node) for node in chain.nodes), strict=True)
    return heights, widths


def _product(chain: FactorChain) -> Array:
    product = chain_factors(chain).product()
    return product if chain.nodes[0].op == "Conv" or product.ndim == 2 else product[:, :, 0, 0]  # (out, in)
