"""What a factor chain computes: its weights as the factors of a layer, and its biases as one at its end."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from lrd_deploy.decompose.factorize import Factors, SVDFactors, Tucker2Factors
from lrd_deploy.rewrite.factor_chain import FactorChain
from lrd_deploy.rewrite.weighted_node import Array, bias, set_weight, weight
from lrd_deploy.rewrite.window import windows


def chain_factors(chain: FactorChain) -> Factors:
    """Returns the chain's weights as factors; three matrix products have a `core` of one pixel."""
    if len(chain.nodes) == 2:
        return SVDFactors(*map(weight, chain.nodes))
    first, core, last = map(weight, chain.nodes)
    core = core if core.ndim == 4 else core[:, :, None, None]  # (rank_out, rank_in, 1, 1)
    return Tucker2Factors(_as_matrix(first), core, _as_matrix(last))


def set_chain_factors(chain: FactorChain, factors: Factors, *, suffix: str) -> None:
    """Gives the nodes the weights of these factors, under names that end in `suffix`."""
    if isinstance(factors, SVDFactors):
        arrays = (factors.down, factors.up)
    else:
        core = factors.core if chain.nodes[1].op == "Conv" else factors.core[:, :, 0, 0]
        arrays = (factors.first, core, factors.last)
    for node, array in zip(chain.nodes, arrays, strict=True):
        set_weight(node, array, f"{node.name}.weight_{suffix}")
    for value in chain.inner:
        value.shape = None  # inferred again after the rewrite


def check_finite_weights(chain: FactorChain) -> str | None:
    """Returns which node has a weight or a bias that is NaN or infinite, or None."""
    for node in chain.nodes:
        arrays = [weight(node), *([] if bias(node) is None else [bias(node)])]
        if not all(np.isfinite(array).all() for array in arrays):
            return f"'{node.name}' has values that are NaN or infinite"
    return None


def check_carried_bias(chain: FactorChain) -> str | None:
    """Returns why the inner biases cannot be carried to the end, or None.

    Padding inside the chain is with zeros, while an inner bias reaches every pixel of its own output.
    """
    for position, node in enumerate(chain.nodes):
        padding = next((later for later in chain.nodes[position + 1 :] if _pads(later)), None)
        if bias(node) is not None and padding is not None:
            return f"'{node.name}' has a bias, which the padding of '{padding.name}' would cut at the borders"
    return None


def carried_bias(chain: FactorChain) -> Array | None:
    """Carries every node's bias through the nodes after it, in float64; None where no node has one."""
    total: Array | None = None
    for node in chain.nodes:
        own = bias(node)
        if total is not None:
            total = _summed_over_pixels(node) @ total
        if own is not None:
            total = own.astype(np.float64) + (0.0 if total is None else total)
    return total


def _as_matrix(array: Array) -> Array:
    return array if array.ndim == 2 else array[:, :, 0, 0]


def _pads(node: gs.Node) -> bool:
    return any(window.pads != (0, 0) for window in windows(node))


def _summed_over_pixels(node: gs.Node) -> Array:
    """What a node does to an input that is the same at every pixel: (out, in)."""
    array = weight(node).astype(np.float64)
    return array.sum((2, 3)) if array.ndim == 4 else array
