"""A weight in, its factors out: truncated SVD for matrices, Tucker-2 for k×k convolutions.

Arrays are numpy's, so that PyTorch modules and ONNX initializers share this code. All arithmetic is float64, whatever
the weight's dtype; the factors come back in the weight's dtype.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lrd_deploy.errors import InputError

Array = NDArray[np.floating]


@dataclass(frozen=True)
class SVDFactors:
    """`W ≈ up @ down`, in data-flow order."""

    down: Array  # (rank, in)
    up: Array  # (out, rank)

    def product(self) -> Array:
        """Returns the weight that the factors stand for, in float64: (out, in)."""
        return self.up.astype(np.float64) @ self.down.astype(np.float64)


@dataclass(frozen=True)
class Tucker2Factors:
    """`W ≈ core ×₁ last ×₂ first`: a 1×1, a k×k and a 1×1 convolution in data-flow order."""

    first: Array  # (rank_in, in)
    core: Array  # (rank_out, rank_in, kh, kw)
    last: Array  # (out, rank_out)

    def product(self) -> Array:
        """Returns the weight that the factors stand for, in float64: (out, in, kh, kw)."""
        first, core, last = (factor.astype(np.float64) for factor in (self.first, self.core, self.last))
        return np.einsum("or,rihw,ic->ochw", last, core, first, optimize=True)  # (out, in, kh, kw)


def svd_factors(weight: Array, rank: int) -> SVDFactors:
    """Returns the best factors of that rank: `down = √Σ Vᵀ`, `up = U √Σ`.

    The symmetric split keeps both factors at one scale, so that freezing one does not set the other's learning rate.

    Args:
        weight: (out, in), any float dtype.
        rank: 1 … min(out, in).

    Raises:
        InputError: the rank is out of range, or the weight is not finite.

    Source: Eckart–Young; the split as in arXiv 2407.20266, section 2.
    """
    _check(weight, {"rank": (rank, min(weight.shape))})
    u, singular_values, vt = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
    root = np.sqrt(singular_values[:rank])
    down = root[:, None] * vt[:rank]  # (rank, in)
    up = u[:, :rank] * root  # (out, rank)
    return SVDFactors(down.astype(weight.dtype), up.astype(weight.dtype))


def tucker2_factors(weight: Array, rank_in: int, rank_out: int, *, iterations: int = 3) -> Tucker2Factors:
    """Returns Tucker-2 factors on the channel modes: a HOSVD start, refined by HOOI.

    Each HOOI sweep projects one channel mode on the other's basis and takes the leading eigenvectors again; the error
    never grows from sweep to sweep.

    Args:
        weight: (out, in, kh, kw), any float dtype.
        rank_in: 1 … in.
        rank_out: 1 … out.
        iterations: HOOI sweeps; 0 is plain HOSVD.

    Raises:
        InputError: a rank is out of range, or the weight is not finite.

    Source: De Lathauwer et al., SIAM J. Matrix Anal. Appl. 21 (2000), 1253 (HOSVD) and 1324 (HOOI);
    Kim et al., arXiv 1511.06530, for the use on convolutions.
    """
    out_channels, in_channels, *_ = weight.shape
    # A mode's rank can be no larger than the other modes together span.
    spatial = weight[0, 0].size
    _check(
        weight,
        {
            "rank_in": (rank_in, min(in_channels, out_channels * spatial)),
            "rank_out": (rank_out, min(out_channels, in_channels * spatial)),
        },
    )
    exact = weight.astype(np.float64)
    basis_in = _leading_basis(exact, mode=1, rank=rank_in)  # (in, rank_in)
    basis_out = _leading_basis(exact, mode=0, rank=rank_out)  # (out, rank_out)
    for _ in range(iterations):
        basis_out = _leading_basis(_project(exact, basis_in, mode=1), mode=0, rank=rank_out)
        basis_in = _leading_basis(_project(exact, basis_out, mode=0), mode=1, rank=rank_in)
    core = _project(_project(exact, basis_in, mode=1), basis_out, mode=0)  # (rank_out, rank_in, kh, kw)
    factors = _balanced(basis_in.T, core, basis_out)
    return Tucker2Factors(*(factor.astype(weight.dtype) for factor in factors))


def relative_error(weight: Array, factors: SVDFactors | Tucker2Factors) -> float:
    """Returns ‖W − Ŵ‖F / ‖W‖F, and 0 for a weight of zeros."""
    exact = weight.astype(np.float64)
    norm = np.linalg.norm(exact)
    return float(np.linalg.norm(exact - factors.product()) / norm) if norm else 0.0


def _leading_basis(tensor: Array, *, mode: int, rank: int) -> Array:
    """Orthonormal basis of the strongest directions of one mode: the top eigenvectors of its Gram matrix."""
    unfolded = np.moveaxis(tensor, mode, 0).reshape(tensor.shape[mode], -1)  # (mode, all others)
    _, vectors = np.linalg.eigh(unfolded @ unfolded.T)  # ascending
    return vectors[:, ::-1][:, :rank]  # (mode, rank)


def _project(tensor: Array, basis: Array, *, mode: int) -> Array:
    """Expresses one channel mode in `basis`: its size falls to the basis' rank."""
    return np.moveaxis(np.tensordot(basis.T, tensor, axes=(1, mode)), 0, mode)


def _balanced(first: Array, core: Array, last: Array) -> tuple[Array, Array, Array]:
    """Spreads the core's scale evenly, so that each factor has the same root mean square of its rows' norms.

    HOOI leaves orthonormal outer factors and all the scale in the core; with one learning rate for the three, the
    outer ones would then learn far faster than the core.
    """
    scale = np.sqrt(np.linalg.norm(core) / np.sqrt(core.shape[0])) or 1.0
    share = scale ** (2 / 3)
    return first * share, core / share**2, last * share


def _check(weight: Array, ranks: dict[str, tuple[int, int]]) -> None:
    for name, (rank, largest) in ranks.items():
        if not 1 <= rank <= largest:
            raise InputError(
                f"factorising a weight of shape {weight.shape}",
                found=f"{name} {rank}",
                accepted=f"1 to {largest}",
                remedy=f"choose a {name} of at most {largest}, or keep the layer dense with 'skip' in the recipe",
            )
    if not np.isfinite(weight).all():
        raise InputError(
            f"factorising a weight of shape {weight.shape}",
            found=f"{int((~np.isfinite(weight)).sum())} values that are NaN or infinite",
            accepted="finite weights",
            remedy="repair or retrain the model",
        )
