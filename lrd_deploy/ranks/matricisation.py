"""Reading a kernel as a matrix, so that its SVD gives two factors: one idea behind every two-factor form.

The factor that keeps a kernel axis keeps it in its own side of the matrix: the columns are the input channels and the
axes that `down` places, the rows the output channels and those that `up` places.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from lrd_deploy.ranks.forms import factor_shapes
from lrd_deploy.records import TwoFactors

Array = NDArray[np.floating]
_OUT, _IN, _HEIGHT, _WIDTH = range(4)


@dataclass(frozen=True)
class Matricisation:
    """Which axes of a kernel (out, in, kh, kw) become the rows and which the columns of a matrix."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @classmethod
    def of(cls, choice: TwoFactors) -> Matricisation:
        """Returns the matricisation whose SVD gives this form."""
        down, up = (factor.places for factor in factor_shapes(1, 1, choice))
        kernel = (_HEIGHT, _WIDTH)
        return cls(
            rows=(_OUT, *(axis for axis, placed in zip(kernel, up, strict=True) if placed)),
            columns=(_IN, *(axis for axis, placed in zip(kernel, down, strict=True) if placed)),
        )

    def matrix(self, kernel: Array) -> Array:
        """Returns the kernel as a matrix; an axis on neither side has size 1."""
        left_over = tuple(axis for axis in range(4) if axis not in self.rows + self.columns)
        rows = prod(kernel.shape[axis] for axis in self.rows)
        return kernel.transpose(self.rows + left_over + self.columns).reshape(rows, -1)  # (rows, columns)

    def down(self, factor: Array, shape: tuple[int, ...]) -> Array:
        """Folds (rank, columns) back into a kernel (rank, in, kh or 1, kw or 1)."""
        sizes = (shape[axis] if axis in self.columns else 1 for axis in (_IN, _HEIGHT, _WIDTH))
        return factor.reshape(-1, *sizes)

    def up(self, factor: Array, shape: tuple[int, ...]) -> Array:
        """Folds (rows, rank) back into a kernel (out, rank, kh or 1, kw or 1)."""
        sizes = (shape[axis] if axis in self.rows else 1 for axis in (_OUT, _HEIGHT, _WIDTH))
        return np.moveaxis(factor.reshape(*sizes, factor.shape[1]), -1, 1)


def as_kernel(weight: Array) -> Array:
    """Returns a weight (out, in) or (out, in, kh, kw) with four axes."""
    return weight.reshape(*weight.shape, *(1,) * (4 - weight.ndim))
