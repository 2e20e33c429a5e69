"""What each form and rank loses, read off the singular values of a weight once."""

from __future__ import annotations

from functools import cached_property
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from lrd_deploy.ranks.matricisation import Matricisation, as_kernel
from lrd_deploy.ranks.metric import Metric
from lrd_deploy.records import Choice, KeepDense, Tucker2, TwoFactors

Array = NDArray[np.floating]


class Spectrum:
    """How the energy (squared norm) of a weight is spread over its strongest directions; all shares of 1.

    With a metric it is the energy of the layer's outputs on the calibration data. Every form's share is worked out
    when it is first asked for.
    """

    def __init__(self, weight: Array, metric: Metric | None = None) -> None:
        """Takes a weight of shape (out, in) or (out, in, kh, kw)."""
        kernel = as_kernel(weight.astype(np.float64))
        self._kernel = kernel if metric is None else metric.whiten(kernel)
        self._total = float((self._kernel**2).sum()) or 1.0
        self._tails: dict[Matricisation, Array] = {}

    def relative_error(self, choice: Choice) -> float:
        """Returns ‖W − Ŵ‖F / ‖W‖F: exact for two factors, that of HOSVD, which HOOI can only lower, for Tucker-2."""
        match choice:
            case KeepDense():
                return 0.0
            case Tucker2(rank_in=rank_in, rank_out=rank_out):
                return sqrt(max(self._corners[-1, -1] - self._corners[rank_in, rank_out], 0.0))
            case _:
                return sqrt(self._tail(choice)[choice.rank])

    def ranks_for(self, share: float) -> tuple[int, int]:
        """Returns the least `(rank_in, rank_out)` that each keep `share` of their channel mode's energy."""
        reach = (_energies(self._reading(mode)) / self._total for mode in (1, 0))
        rank_in, rank_out = (_least_rank(energy, share) for energy in reach)
        return rank_in, rank_out

    def _tail(self, choice: TwoFactors) -> Array:
        """Energy beyond each rank, from 0 to the full one."""
        reading = Matricisation.of(choice)
        if reading not in self._tails:
            energies = _energies(reading.matrix(self._kernel)) / self._total
            self._tails[reading] = np.append(energies[::-1].cumsum()[::-1], 0.0)
        return self._tails[reading]

    @cached_property
    def _corners(self) -> Array:
        """Energy that the first i input and the first o output directions hold together; (in + 1, out + 1).

        Truncating the corners of a full HOSVD's core gives every smaller Tucker-2 approximation at once.
        """
        basis_in, basis_out = (_directions(self._reading(mode)) for mode in (1, 0))
        core = np.einsum("ochw,ci,or->irhw", self._kernel, basis_in, basis_out, optimize=True)  # (in, out, kh, kw)
        return np.pad((core**2).sum((2, 3)) / self._total, ((1, 0), (1, 0))).cumsum(0).cumsum(1)

    def _reading(self, mode: int) -> Array:
        """The kernel with one channel mode as rows, the others as columns."""
        return np.moveaxis(self._kernel, mode, 0).reshape(self._kernel.shape[mode], -1)


def _gram(matrix: Array) -> Array:
    return matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix


def _energies(matrix: Array) -> Array:
    """Squared singular values, descending."""
    return np.maximum(np.linalg.eigvalsh(_gram(matrix))[::-1], 0.0)


def _directions(matrix: Array) -> Array:
    """Orthonormal directions of the rows' space, the strongest first."""
    return np.linalg.eigh(matrix @ matrix.T)[1][:, ::-1]


def _least_rank(energy: Array, share: float) -> int:
    # A share that is reached but for rounding is reached.
    slack = np.finfo(np.float64).eps * len(energy) ** 2
    return min(int(np.searchsorted(np.cumsum(energy) + slack, share * energy.sum()) + 1), len(energy))
