"""`balance_factors`: bring the factors of a layer to one scale, component by component, so that FP16 holds them all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from lrd_deploy.rewrite.chain_weights import check_finite_weights
from lrd_deploy.rewrite.factor_chain import FactorChain, check_chain, find_chains
from lrd_deploy.rewrite.rule import Change
from lrd_deploy.rewrite.weighted_node import Array, bias, set_bias, set_weight, weight

_SWEEPS = 64  # of three factors, which pull at each other; two are done after one
Exponents = list[NDArray[np.int64]]


@dataclass(frozen=True)
class BalanceFactors:
    """Multiplies each inner channel of a factor chain by a power of two, and divides by it what reads the channel.

    pattern:  x ─ down ─ up ─ y                        or first ─ core ─ last
    rewrite:  x ─ 2ᵏ·down ─ up·2⁻ᵏ ─ y                 one k per inner channel

    Afterwards the norms of what writes and of what reads a channel are within a factor of two of each other. Powers of
    two change no digit of any product or sum, so the outputs stay bit for bit unless an inner value leaves the range
    of its type. A channel that nothing writes, or nothing reads, is left as it is.

    Source: Osborne, J. ACM 7 (1960), 338, as LAPACK's `gebal` balances rows against columns.
    """

    name: str = "balance_factors"

    def match(self, graph: gs.Graph) -> list[FactorChain]:
        """Every factor chain."""
        return find_chains(graph)

    def check(self, graph: gs.Graph, chain: FactorChain) -> str | None:
        """Refuses factors that are balanced, and weights that would lose digits at the end of their type's range."""
        refusal = check_chain(graph, chain) or check_finite_weights(chain)
        if refusal:
            return refusal
        exponents = _exponents(chain)
        if not any(found.any() for found in exponents):
            return "its factors are on one scale already"
        for node, *scalings in _scalings(chain, exponents):
            if not all(scaling.is_exact for scaling in scalings if scaling):
                return f"scaling '{node.name}' would take values out of the range of {weight(node).dtype}"
        return None

    def rewrite(self, chain: FactorChain) -> Change:
        """Scales every weight of the chain, and the biases of its inner nodes."""
        exponents = _exponents(chain)
        for node, of_weight, of_bias in _scalings(chain, exponents):
            set_weight(node, of_weight.scaled, f"{node.name}.weight_balanced")
            if of_bias:
                set_bias(node, of_bias.scaled, f"{node.name}.bias_balanced")
        moved = sum(int(np.count_nonzero(found)) for found in exponents)
        most = max(int(np.abs(found).max()) for found in exponents)
        return Change(f"{moved} of {sum(chain.ranks)} components scaled by powers of two, at most 2^{most}")


@dataclass(frozen=True)
class _Scaling:
    """An array that is multiplied by powers of two."""

    before: Array
    powers: NDArray[np.int64]

    @property
    def scaled(self) -> Array:
        """The product, in the array's own type."""
        with np.errstate(over="ignore", under="ignore"):  # `check` refuses what these would lose
            return np.ldexp(self.before, self.powers)

    @property
    def is_exact(self) -> bool:
        """True where dividing again gives every value back."""
        with np.errstate(over="ignore", under="ignore"):
            return np.array_equal(np.ldexp(self.scaled, -self.powers), self.before)


def _exponents(chain: FactorChain) -> Exponents:
    """The power of two for each inner channel, by inner value."""
    squares = [weight(node).astype(np.float64) ** 2 for node in chain.nodes]  # (out, in) or (out, in, kh, kw)
    squares = [array.reshape(*array.shape[:2], -1).sum(2) for array in squares]  # (out, in)
    total: Exponents = [np.zeros(rank, np.int64) for rank in chain.ranks]
    for _ in range(_SWEEPS):
        changed = False
        for position, exponents in enumerate(total):
            step = _step(squares[position].sum(1), squares[position + 1].sum(0))
            squares[position] = squares[position] * 4.0 ** step[:, None]
            squares[position + 1] = squares[position + 1] * 4.0**-step
            exponents += step
            changed |= bool(step.any())
        if not changed:
            break
    return total


def _step(written: Array, read: Array) -> NDArray[np.int64]:
    """Half the distance between two squared norms, in powers of two; none where either is zero."""
    both = (written > 0) & (read > 0)
    ratio = np.divide(read, written, where=both, out=np.ones_like(read))
    distance = np.log2(ratio)
    return np.rint(distance / 4).astype(np.int64)


def _scalings(chain: FactorChain, exponents: Exponents) -> list[tuple[gs.Node, _Scaling, _Scaling | None]]:
    """Each node with what happens to its weight, and to the bias of an inner node."""
    read, written = [None, *exponents], [*exponents, None]
    return [
        (node, _of_weight(node, into, out), _of_bias(node, out))
        for node, into, out in zip(chain.nodes, read, written, strict=True)
    ]


def _of_weight(node: gs.Node, into: NDArray[np.int64] | None, out: NDArray[np.int64] | None) -> _Scaling:
    """Divides by the powers of the channels that a node reads, and multiplies by those of the ones it writes."""
    array = weight(node)
    powers = np.zeros(array.shape[:2], np.int64)
    powers += 0 if out is None else out[:, None]
    powers -= 0 if into is None else into
    return _Scaling(array, powers.reshape(*powers.shape, *(1,) * (array.ndim - 2)))  # (out, in) or (out, in, 1, 1)


def _of_bias(node: gs.Node, out: NDArray[np.int64] | None) -> _Scaling | None:
    return None if out is None or bias(node) is None else _Scaling(bias(node), out)
