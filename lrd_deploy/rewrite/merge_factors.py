"""`merge_factors`: multiply factors back into the one layer they stand for, where the factors do not pay."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from lrd_deploy.decompose.factorize import SVDFactors, Tucker2Factors
from lrd_deploy.rewrite.factor_chain import (
    Array,
    FactorChain,
    bias,
    check_chain,
    find_chains,
    is_pointwise,
    matrix,
    set_matrix,
    weight,
)


@dataclass(frozen=True)
class MergeFactors:
    """Turns a factor chain into one node.

    pattern:  x ─ down ─ up ─ y            x ─ first ─ core ─ last ─ y
    rewrite:  x ─ up·down ─ y              x ─ core ×₁ last ×₂ first ─ y

    Exact up to rounding: the product is formed in float64. `only` names the chains to merge; None merges all.
    """

    only: frozenset[str] | None = None
    name: str = "merge_factors"

    def match(self, graph: gs.Graph) -> list[FactorChain]:
        """The chains asked for."""
        return [chain for chain in find_chains(graph) if self.only is None or chain.name in self.only]

    def check(self, graph: gs.Graph, chain: FactorChain) -> str | None:
        """Refuses a bias that padding would cut at the borders, and inner strides that a single node cannot have."""
        refusal = check_chain(graph, chain)
        if refusal:
            return refusal
        for node, follower in zip(chain.nodes, chain.nodes[1:], strict=False):
            if bias(node) is not None and _pads(follower):
                return f"'{node.name}' has a bias, which the padding of '{follower.name}' would cut at the borders"
        placed = _placed(chain)
        for node in chain.nodes:
            if node is not placed and (_pads(node) or _strides(node)):
                return f"'{node.name}' strides or pads beside '{placed.name}'"
        return None

    def rewrite(self, chain: FactorChain) -> str:
        """Gives the node that places the kernel the product and the chain's output; the others go."""
        name, before, placed, last = chain.name, chain.ranks, _placed(chain), chain.nodes[-1]
        dtype, merged_bias, source = weight(last).dtype, _merged_bias(chain), chain.nodes[0].inputs[0]
        product = _product(chain).astype(dtype)
        if placed.op == "Conv":
            kernel = product if product.ndim == 4 else product[:, :, None, None]
            placed.inputs[1] = gs.Constant(f"{name}.merged_weight", kernel)
            placed.attrs["kernel_shape"] = list(kernel.shape[2:])
        else:
            set_matrix(placed, product, f"{name}.merged_weight")
        placed.inputs = [source, placed.inputs[1]]
        if merged_bias is not None:
            placed.inputs.append(gs.Constant(f"{name}.merged_bias", merged_bias.astype(dtype)))
        output = last.outputs[0]
        for node in chain.nodes:
            node.outputs.clear()
        placed.outputs = [output]
        placed.name = name
        return f"{len(chain.nodes)} factors of rank {', '.join(map(str, before))} merged"


def _placed(chain: FactorChain) -> gs.Node:
    """The node that the merged one takes its attributes from.

    For convolutions the one that strides, pads or spans pixels; for products a Gemm, which can hold a bias.
    """
    if len(chain.nodes) == 3 and chain.nodes[1].op == "Conv":
        return chain.nodes[1]
    special = (node for node in chain.nodes if _strides(node) or _pads(node) or node.op == "Gemm")
    return next(special, chain.nodes[0])


def _pads(node: gs.Node) -> bool:
    return any(node.attrs.get("pads", ())) or node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")


def _strides(node: gs.Node) -> bool:
    return any(stride != 1 for stride in node.attrs.get("strides", ()))


def _product(chain: FactorChain) -> Array:
    if len(chain.nodes) == 2:
        down, up = chain.nodes
        return SVDFactors(matrix(down), matrix(up)).product()  # (out, in)
    first, core, last = chain.nodes
    if is_pointwise(core):
        return SVDFactors(matrix(core).astype(np.float64) @ matrix(first), matrix(last)).product()  # (out, in)
    return Tucker2Factors(matrix(first), weight(core), matrix(last)).product()  # (out, in, kh, kw)


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
    return weight(node).astype(np.float64).sum((2, 3)) if node.op == "Conv" else matrix(node).astype(np.float64)
