"""`merge_factors`: multiply factors back into the one layer they stand for, where the factors do not pay."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from lrd_deploy.decompose.factorize import SVDFactors, Tucker2Factors
from lrd_deploy.rewrite.factor_chain import FactorChain, check_chain, find_chains
from lrd_deploy.rewrite.weighted_node import Array, bias, detach, set_weight, weight
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
        """Refuses a bias that padding would cut at the borders, and windows that a single node cannot have."""
        return check_chain(graph, chain) or _cut_bias(chain) or _clashing_windows(chain)

    def rewrite(self, chain: FactorChain) -> str:
        """Gives one node the product, the windows of all, and the chain's ends; the others go."""
        name, ranks, dtype = chain.name, chain.ranks, weight(chain.nodes[-1]).dtype
        product, merged_bias, placed = _product(chain), _merged_bias(chain), _windows(chain)
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
        return f"{len(chain.nodes)} factors of rank {', '.join(map(str, ranks))} merged"


def _cut_bias(chain: FactorChain) -> str | None:
    """Padding inside the chain is with zeros, while an inner bias reaches every pixel of its own output."""
    for position, node in enumerate(chain.nodes):
        padding = next((later for later in chain.nodes[position + 1 :] if _pads(later)), None)
        if bias(node) is not None and padding is not None:
            return f"'{node.name}' has a bias, which the padding of '{padding.name}' would cut at the borders"
    return None


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


def _pads(node: gs.Node) -> bool:
    return any(window.pads != (0, 0) for window in windows(node))


def _product(chain: FactorChain) -> Array:
    if len(chain.nodes) == 2:
        return SVDFactors(*map(weight, chain.nodes)).product()  # (out, in) or (out, in, kh, kw)
    first, core, last = map(weight, chain.nodes)
    if core.ndim == 2:
        return SVDFactors(core.astype(np.float64) @ first, last).product()  # (out, in)
    return Tucker2Factors(first[:, :, 0, 0], core, last[:, :, 0, 0]).product()  # (out, in, kh, kw)


def _merged_bias(chain: FactorChain) -> Array | None:
    """Carries every node's bias through the nodes after it, in float64; None where no node has one."""
    total: Array | None = None
    for node in chain.nodes:
        own = bias(node)
        if total is not None:
            total = _summed_over_pixels(node) @ total
        if own is not None:
            total = own.astype(np.float64) + (0.0 if total is None else total)
    return total


def _summed_over_pixels(node: gs.Node) -> Array:
    """What a node does to an input that is the same at every pixel: (out, in)."""
    array = weight(node).astype(np.float64)
    return array.sum((2, 3)) if array.ndim == 4 else array
