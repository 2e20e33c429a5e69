"""The leading part of a singular value decomposition: exact, or randomised where the matrix is large."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

_LARGE = 1536  # from this size on the exact decomposition takes seconds, and its cost grows with the cube
_SHARE = 0.3  # of the smaller side; a larger share of the spectrum is not worth sketching
_OVERSAMPLES, _POWER_ITERATIONS = 16, 4


def leading_svd(matrix: Array, rank: int) -> tuple[Array, Array, Array]:
    """Returns `(u, singular_values, vt)` cut to `rank`, singular values descending.

    Matrices whose smaller side is at least 1,536 are sketched when the rank is below 30 % of it.

    Args:
        matrix: (rows, columns), float64 or float32.
        rank: 1 … min(rows, columns).

    Source: Halko, Martinsson and Tropp, SIAM Review 53 (2011), 217: randomised range finder with power iterations.
    """
    smaller = min(matrix.shape)
    if smaller >= _LARGE and rank + _OVERSAMPLES < _SHARE * smaller:
        return randomised_svd(matrix, rank)
    u, singular_values, vt = np.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank], singular_values[:rank], vt[:rank]


def randomised_svd(matrix: Array, rank: int, *, seed: int = 0) -> tuple[Array, Array, Array]:
    """Returns an approximate leading SVD from a random sketch; the same for the same seed.

    Each power iteration multiplies by the matrix and its transpose, with an orthonormalisation between them.
    """
    random = np.random.default_rng(seed)
    sketch = random.standard_normal((matrix.shape[1], min(rank + _OVERSAMPLES, *matrix.shape)))
    basis = np.linalg.qr(matrix @ sketch.astype(matrix.dtype))[0]  # (rows, rank + oversamples)
    for _ in range(_POWER_ITERATIONS):
        basis = np.linalg.qr(matrix.T @ basis)[0]
        basis = np.linalg.qr(matrix @ basis)[0]
    u, singular_values, vt = np.linalg.svd(basis.T @ matrix, full_matrices=False)
    return (basis @ u)[:, :rank], singular_values[:rank], vt[:rank]
