"""Factors in, factors of lower rank out: the best ones for the layer that the factors stand for, without forming it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lrd_deploy.decompose.factorize import Factors, SVDFactors, Tucker2Factors, tucker2_factors
from lrd_deploy.ranks.forms import largest_ranks
from lrd_deploy.records import LayerSignature, Tucker2

Array = NDArray[np.floating]


def lowered(factors: Factors, ranks: Sequence[int]) -> Factors:
    """Returns factors of these ranks whose product is nearest to that of the given ones, in the same dtype.

    Args:
        factors: finite ones.
        ranks: one for a pair, `(rank_in, rank_out)` for three factors; each from 1 to what it is now.
    """
    if isinstance(factors, SVDFactors):
        (rank,) = ranks
        return lowered_pair(factors, rank)
    rank_in, rank_out = ranks
    return lowered_tucker2(factors, Tucker2(rank_in=rank_in, rank_out=rank_out))


def lowered_pair(factors: SVDFactors, rank: int) -> SVDFactors:
    """Returns the best pair of that rank: QR of both factors, and the SVD of the small core between them.

    `up @ down = Q_up (R_up R_downᵀ) Q_downᵀ` with orthonormal outer matrices, so the leading part of the core's SVD is
    that of the product. Whatever pixels either factor spans count among its rows or columns.

    Args:
        factors: of a rank not above the smaller side of their product.
        rank: from 1 to what it is now.
    """
    down, up = factors.down.astype(np.float64), factors.up.astype(np.float64)
    q_down, r_down = np.linalg.qr(down.reshape(len(down), -1).T)  # (columns, rank), (rank, rank)
    q_up, r_up = np.linalg.qr(np.moveaxis(up, 1, -1).reshape(-1, len(down)))  # (rows, rank), (rank, rank)
    u, singular_values, vt = np.linalg.svd(r_up @ r_down.T)
    root = np.sqrt(singular_values[:rank])
    new_down = (root[:, None] * vt[:rank] @ q_down.T).reshape(rank, *down.shape[1:])  # (rank, in, …)
    new_up = np.moveaxis((q_up @ u[:, :rank] * root).reshape(len(up), *up.shape[2:], rank), -1, 1)  # (out, rank, …)
    return SVDFactors(new_down.astype(factors.down.dtype), new_up.astype(factors.up.dtype))


def lowered_tucker2(factors: Tucker2Factors, choice: Tucker2) -> Tucker2Factors:
    """Returns three factors of those ranks: QR of the outer ones, and HOOI on the core in their coordinates.

    The coordinates are orthonormal, so the core's best approximation is the product's; see `tucker2_factors` for how
    near HOOI comes to it. A rank that the other one makes superfluous is filled up with zeros.

    Args:
        factors: with ranks not above the layer's widths.
        choice: ranks from 1 to what they are now.
    """
    first, core, last = (factor.astype(np.float64) for factor in (factors.first, factors.core, factors.last))
    q_first, r_first = np.linalg.qr(first.T)  # (in, rank_in), (rank_in, rank_in)
    q_last, r_last = np.linalg.qr(last)  # (out, rank_out), (rank_out, rank_out)
    small = np.einsum("or,rihw,ci->ochw", r_last, core, r_first, optimize=True)  # (rank_out, rank_in, kh, kw)
    useful = _useful(choice, small)
    lower = tucker2_factors(small, useful)
    more_in, more_out = choice.rank_in - useful.rank_in, choice.rank_out - useful.rank_out
    arrays = (
        np.pad(lower.first @ q_first.T, ((0, more_in), (0, 0))),
        np.pad(lower.core, ((0, more_out), (0, more_in), (0, 0), (0, 0))),
        np.pad(q_last @ lower.last, ((0, 0), (0, more_out))),
    )
    return Tucker2Factors(*(array.astype(factors.core.dtype) for array in arrays))


def _useful(choice: Tucker2, small: Array) -> Tucker2:
    """The ranks, cut to those at which the small core is exact."""
    rank_out, rank_in, *kernel = small.shape
    core = LayerSignature(kind="conv2d", in_channels=rank_in, out_channels=rank_out, kernel=tuple(kernel))
    largest_in, largest_out = largest_ranks(core, choice)
    return Tucker2(rank_in=min(choice.rank_in, largest_in), rank_out=min(choice.rank_out, largest_out))
