"""A weight in, its factors out: truncated SVD in four readings of the weight, and Tucker-2 for k×k convolutions.

Arrays are numpy's, so that PyTorch modules and ONNX initializers share this code. Arithmetic is float64, whatever the
weight's dtype, except as `leading_svd` says for large ones; the factors come back in the weight's dtype. With a
`Metric` the error that is made least is that of the layer's outputs on the calibration data instead of that of its
weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lrd_deploy.decompose.leading_svd import leading_svd
from lrd_deploy.errors import InputError
from lrd_deploy.ranks.forms import largest_ranks, ranks_of
from lrd_deploy.ranks.matricisation import Matricisation, as_kernel
from lrd_deploy.ranks.metric import Metric, weighted_norm
from lrd_deploy.records import LayerSignature, Tucker2, TwoFactors

Array = NDArray[np.floating]


@dataclass(frozen=True)
class SVDFactors:
    """`W ≈ up @ down`, in data-flow order; kernels where the layer is a convolution."""

    down: Array  # (rank, in) or (rank, in, kh or 1, kw or 1)
    up: Array  # (out, rank) or (out, rank, kh or 1, kw or 1)

    def product(self) -> Array:
        """Returns the weight that the factors stand for, in float64: (out, in) or (out, in, kh, kw)."""
        down, up = (as_kernel(factor.astype(np.float64)) for factor in (self.down, self.up))
        # Each kernel axis is placed by one factor at most, so the product broadcasts over both.
        by_tap = np.matmul(up.transpose(2, 3, 0, 1), down.transpose(2, 3, 0, 1))  # (kh, kw, out, in)
        kernel = by_tap.transpose(2, 3, 0, 1)  # (out, in, kh, kw)
        return kernel[:, :, 0, 0] if self.down.ndim == 2 else kernel


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


Factors = SVDFactors | Tucker2Factors


def svd_factors(weight: Array, choice: TwoFactors, metric: Metric | None = None) -> SVDFactors:
    """Returns the best factors of that form and rank: `down = √Σ Vᵀ`, `up = U √Σ` of the weight read as a matrix.

    The symmetric split keeps both factors at one scale, so that freezing one does not set the other's learning rate.

    Args:
        weight: (out, in) or (out, in, kh, kw), any float dtype.
        choice: the form, and a rank of at least 1.
        metric: weights the error by the layer's inputs; None weights all alike.

    Raises:
        InputError: the rank is out of range, or the weight is not finite.

    Source: Eckart–Young; the split as in arXiv 2407.20266, section 2; channel and spatial SVD as in Zhang et al.,
    arXiv 1505.06798, and Jaderberg et al., arXiv 1405.3866.
    """
    _check(weight, choice)
    single = metric is None and weight.dtype != np.float64
    kernel, reading = as_kernel(weight.astype(np.float32 if single else np.float64)), Matricisation.of(choice)
    whitened = kernel if metric is None else metric.whiten(kernel)
    u, singular_values, vt = leading_svd(reading.matrix(whitened), choice.rank)
    root = np.sqrt(singular_values)
    down = reading.down(root[:, None] * vt, kernel.shape)  # (rank, in, kh or 1, kw or 1)
    up = reading.up(u * root, kernel.shape)  # (out, rank, kh or 1, kw or 1)
    if metric is not None:
        down, up = _one_scale(metric.unwhiten(down, reading.columns), metric.unwhiten(up, reading.rows[1:]))
    if weight.ndim == 2:
        down, up = down[:, :, 0, 0], up[:, :, 0, 0]
    return SVDFactors(down.astype(weight.dtype), up.astype(weight.dtype))


def tucker2_factors(
    weight: Array, choice: Tucker2, metric: Metric | None = None, *, iterations: int = 3
) -> Tucker2Factors:
    """Returns Tucker-2 factors on the channel modes: a HOSVD start, refined by HOOI.

    Each HOOI sweep projects one channel mode on the other's basis and takes the leading eigenvectors again; the error
    never grows from sweep to sweep. With a metric HOOI also starts from the plain factors, and the better end is
    taken, so that the weighted error is never above theirs.

    Args:
        weight: (out, in, kh, kw), any float dtype.
        choice: the two ranks.
        metric: weights the error by the layer's inputs; None weights all alike.
        iterations: HOOI sweeps; 0 is plain HOSVD.

    Raises:
        InputError: a rank is out of range, or the weight is not finite.

    Source: De Lathauwer et al., SIAM J. Matrix Anal. Appl. 21 (2000), 1253 (HOSVD) and 1324 (HOOI);
    Kim et al., arXiv 1511.06530, for the use on convolutions.
    """
    _check(weight, choice)
    exact = weight.astype(np.float64)
    bases = _hooi(exact, _hosvd(exact, choice), iterations)
    if metric is not None:
        whitened = metric.whiten(exact)
        plain_in = np.linalg.qr(metric.roots[1] @ bases[0])[0]  # (in, rank_in), the same span in the metric
        starts = (_hosvd(whitened, choice), (plain_in, bases[1]))
        exact = whitened
        bases = max((_hooi(exact, start, iterations) for start in starts), key=lambda ends: _kept(exact, *ends))
    basis_in, basis_out = bases
    core = _project(_project(exact, basis_in, mode=1), basis_out, mode=0)  # (rank_out, rank_in, kh, kw)
    first = basis_in.T
    if metric is not None:
        first, core = first @ metric.inverses[1], metric.unwhiten(core, (2, 3))
    return Tucker2Factors(*(factor.astype(weight.dtype) for factor in _balanced(first, core, basis_out)))


def factors_of(weight: Array, choice: TwoFactors | Tucker2, metric: Metric | None = None) -> Factors:
    """Returns the weight's factors in whatever form the choice names; see `svd_factors` and `tucker2_factors`."""
    if isinstance(choice, Tucker2):
        return tucker2_factors(weight, choice, metric)
    return svd_factors(weight, choice, metric)


def relative_error(weight: Array, factors: Factors, metric: Metric | None = None) -> float:
    """Returns ‖(W − Ŵ) C^½‖F / ‖W C^½‖F, and 0 for a weight of zeros; without a metric C is the identity."""
    exact = as_kernel(weight.astype(np.float64))
    norm = weighted_norm(exact, metric)
    return weighted_norm(exact - as_kernel(factors.product()), metric) / norm if norm else 0.0


def _one_scale(down: Array, up: Array) -> tuple[Array, Array]:
    """Gives each component of the pair one norm on both sides; their product stays."""
    down_norms = np.linalg.norm(down.reshape(len(down), -1), axis=1)
    up_norms = np.linalg.norm(np.moveaxis(up, 1, 0).reshape(len(down), -1), axis=1)
    scale = np.sqrt(np.divide(up_norms, down_norms, out=np.ones_like(up_norms), where=(up_norms * down_norms) > 0))
    return down * scale[:, None, None, None], up / scale[None, :, None, None]


def _hosvd(tensor: Array, choice: Tucker2) -> tuple[Array, Array]:
    """Bases of the two channel modes: (in, rank_in), (out, rank_out)."""
    return _leading_basis(tensor, mode=1, rank=choice.rank_in), _leading_basis(tensor, mode=0, rank=choice.rank_out)


def _hooi(tensor: Array, start: tuple[Array, Array], iterations: int) -> tuple[Array, Array]:
    basis_in, basis_out = start
    for _ in range(iterations):
        basis_out = _leading_basis(_project(tensor, basis_in, mode=1), mode=0, rank=basis_out.shape[1])
        basis_in = _leading_basis(_project(tensor, basis_out, mode=0), mode=1, rank=basis_in.shape[1])
    return basis_in, basis_out


def _kept(tensor: Array, basis_in: Array, basis_out: Array) -> float:
    """Energy of the part of a tensor that two bases span: the more, the smaller the error."""
    return float((_project(_project(tensor, basis_in, mode=1), basis_out, mode=0) ** 2).sum())


def _leading_basis(tensor: Array, *, mode: int, rank: int) -> Array:
    """Orthonormal basis of the strongest directions of one mode: the top eigenvectors of its Gram matrix."""
    unfolded = np.moveaxis(tensor, mode, 0).reshape(tensor.shape[mode], -1)  # (mode, all others)
    _, vectors = np.linalg.eigh(unfolded @ unfolded.T)  # ascending
    return vectors[:, ::-1][:, :rank]  # (mode, rank)


def _project(tensor: Array, basis: Array, *, mode: int) -> Array:
    """Expresses one channel mode in `basis`: its size falls to the basis' rank."""
    return np.moveaxis(np.tensordot(basis.T, tensor, axes=(1, mode)), 0, mode)


def _balanced(first: Array, core: Array, last: Array) -> tuple[Array, Array, Array]:
    """Spreads all scale evenly, so that each factor has the same root mean square of its channels' norms.

    HOOI leaves orthonormal outer factors and all the scale in the core; with one learning rate for the three, the
    outer ones would then learn far faster than the core.
    """
    sizes = [np.linalg.norm(factor) / np.sqrt(rank) or 1.0 for factor, rank in _channels(first, core, last)]
    share = np.prod(sizes) ** (1 / 3)
    return first * (share / sizes[0]), core * (share / sizes[1]), last * (share / sizes[2])


def _channels(first: Array, core: Array, last: Array) -> Sequence[tuple[Array, int]]:
    """Each factor with the number of channels that its norm is spread over: the inner ones."""
    return (first, len(first)), (core, len(core)), (last, last.shape[1])


def _check(weight: Array, choice: TwoFactors | Tucker2) -> None:
    out_channels, in_channels, *kernel = weight.shape
    kind = "conv2d" if kernel else "linear"
    signature = LayerSignature(
        kind=kind, in_channels=in_channels, out_channels=out_channels, kernel=tuple(kernel or (1, 1))
    )
    names = ("rank_in", "rank_out") if isinstance(choice, Tucker2) else ("rank",)
    for name, rank, largest in zip(names, ranks_of(choice), largest_ranks(signature, choice), strict=True):
        if rank > largest:
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
