"""What each rank loses, read off the singular values of a weight once."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from lrd_deploy.records import SVD, Choice, KeepDense, Tucker2

Array = NDArray[np.floating]


@dataclass(frozen=True)
class Spectrum:
    """How the energy (squared norm) of a weight is spread over its strongest directions; all shares of 1.

    Attributes:
        energy_in: along the input channels, descending; for a matrix, its squared singular values.
        energy_out: along the output channels, descending; for a matrix, the same as `energy_in`.
        kept: `kept[i, o]` is the energy that the first i input and the first o output directions hold together;
            (in + 1, out + 1). For a matrix only the diagonal means anything.
    """

    energy_in: Array
    energy_out: Array
    kept: Array

    @classmethod
    def of(cls, weight: Array) -> Spectrum:
        """Returns the spectrum of a weight of shape (out, in) or (out, in, kh, kw)."""
        exact = weight.astype(np.float64)
        total = float((exact**2).sum()) or 1.0
        if exact[0, 0].size == 1:
            energy = np.linalg.svd(exact.reshape(exact.shape[:2]), compute_uv=False) ** 2 / total
            return cls(energy, energy, _cumulated(np.diag(energy)))
        energy_in, basis_in = _directions(exact, mode=1)
        energy_out, basis_out = _directions(exact, mode=0)
        # The core of a full HOSVD: truncating its corners gives every smaller Tucker-2 approximation at once.
        core = np.einsum("ochw,ci,or->irhw", exact, basis_in, basis_out, optimize=True)  # (in, out, kh, kw)
        return cls(energy_in / total, energy_out / total, _cumulated((core**2).sum((2, 3)) / total))

    def relative_error(self, choice: Choice) -> float:
        """Returns ‖W − Ŵ‖F / ‖W‖F: exact for SVD, that of HOSVD, which HOOI can only lower, for Tucker-2."""
        match choice:
            case KeepDense():
                return 0.0
            case SVD(rank=rank):
                return self._error(rank, rank)
            case Tucker2(rank_in=rank_in, rank_out=rank_out):
                return self._error(rank_in, rank_out)

    def ranks_for(self, share: float) -> tuple[int, int]:
        """Returns the least `(rank_in, rank_out)` that each keep `share` of their mode's energy."""
        return _least_rank(self.energy_in, share), _least_rank(self.energy_out, share)

    def _error(self, rank_in: int, rank_out: int) -> float:
        return sqrt(max(self.kept[-1, -1] - self.kept[rank_in, rank_out], 0.0))


def _directions(weight: Array, *, mode: int) -> tuple[Array, Array]:
    """Energies along one channel mode, descending, and the orthonormal directions they belong to."""
    unfolded = np.moveaxis(weight, mode, 0).reshape(weight.shape[mode], -1)  # (mode, all others)
    energies, vectors = np.linalg.eigh(unfolded @ unfolded.T)  # ascending
    return np.maximum(energies[::-1], 0.0), vectors[:, ::-1]


def _cumulated(energy: Array) -> Array:
    """Sums over all leading corners; one row and one column of zeros stand for rank 0."""
    return np.pad(energy, ((1, 0), (1, 0))).cumsum(0).cumsum(1)


def _least_rank(energy: Array, share: float) -> int:
    # A share that is reached but for rounding is reached.
    slack = np.finfo(np.float64).eps * len(energy) ** 2
    return min(int(np.searchsorted(np.cumsum(energy) + slack, share * energy.sum()) + 1), len(energy))
