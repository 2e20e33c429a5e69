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
    """Shares of a weight's energy, descending, along its input and its output channels; each sums to 1.

    For a matrix both are the squared singular values.
    """

    energy_in: Array
    energy_out: Array

    @classmethod
    def of(cls, weight: Array) -> Spectrum:
        """Returns the spectrum of a weight of shape (out, in) or (out, in, kh, kw)."""
        exact = weight.astype(np.float64)
        if exact[0, 0].size == 1:
            energy = _shares(np.linalg.svd(exact.reshape(exact.shape[:2]), compute_uv=False) ** 2)
            return cls(energy, energy)
        return cls(_mode_energy(exact, mode=1), _mode_energy(exact, mode=0))

    def relative_error(self, choice: Choice) -> float:
        """Returns ‖W − Ŵ‖F / ‖W‖F: exact for SVD, the HOSVD bound (at most 1) for Tucker-2."""
        match choice:
            case KeepDense():
                return 0.0
            case SVD(rank=rank):
                return sqrt(_tail(self.energy_in, rank))
            case Tucker2(rank_in=rank_in, rank_out=rank_out):
                return sqrt(min(1.0, _tail(self.energy_in, rank_in) + _tail(self.energy_out, rank_out)))

    def ranks_for(self, share: float) -> tuple[int, int]:
        """Returns the least `(rank_in, rank_out)` that each keep `share` of their mode's energy."""
        return _least_rank(self.energy_in, share), _least_rank(self.energy_out, share)


def _mode_energy(weight: Array, *, mode: int) -> Array:
    unfolded = np.moveaxis(weight, mode, 0).reshape(weight.shape[mode], -1)  # (mode, all others)
    return _shares(np.linalg.eigvalsh(unfolded @ unfolded.T)[::-1])


def _shares(energy: Array) -> Array:
    energy = np.maximum(energy, 0.0)
    total = energy.sum()
    return energy / total if total else energy


def _tail(energy: Array, rank: int) -> float:
    return float(energy[rank:].sum())


def _least_rank(energy: Array, share: float) -> int:
    # A share that is reached but for rounding is reached.
    kept = np.cumsum(energy) + np.finfo(np.float64).eps * len(energy)
    return int(np.searchsorted(kept, share) + 1) if share < 1.0 else int(np.count_nonzero(energy) or 1)
