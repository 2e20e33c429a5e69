"""Data-aware error: weighting a layer's approximation by what its inputs look like.

The output error of an approximation is `‖(W − Ŵ) C^½‖`, with C the second moment of the layer's inputs. C is kept as
one factor per axis of the kernel, `C ≈ C_in ⊗ C_height ⊗ C_width`: exact for matrices, and for k×k kernels small enough
to hold and to take the root of. In coordinates where C is the identity every form's best approximation is the plain
one, so `whiten` before factorising and `unwhiten` the factors after is all there is to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from lrd_deploy.errors import InputError
from lrd_deploy.records import LayerSignature

Array = NDArray[np.floating]
Product = Callable[[Array, Array], Array]

_CHUNK = 4096


@dataclass(frozen=True)
class InputMoment:
    """Second moments of a layer's inputs, averaged over `positions` (samples × pixels or tokens).

    Attributes:
        channels: E[x xᵀ] over the input channels, (in, in).
        height: correlation of the kernel's rows with each other, mean of its diagonal 1, (kh, kh).
        width: that of its columns, (kw, kw).
        positions: how many vectors were averaged.
    """

    channels: Array
    height: Array
    width: Array
    positions: int

    @property
    def full_rank(self) -> bool:
        """False where fewer vectors were seen than there are channels: whole directions are then unknown."""
        return self.positions >= len(self.channels)


class MomentSum:
    """Streams batches of one layer's inputs into an `InputMoment`; holds no batch.

    Products are of at most 4096 vectors in the inputs' own precision, by `product`, and are added up in float64: of
    float32 inputs every moment is within 4096 · 2⁻²⁴ of the root of its two diagonal elements' product.
    """

    def __init__(self, name: str, signature: LayerSignature, product: Product = np.matmul) -> None:
        self.name, self.signature, self._product = name, signature, product
        size = signature.in_channels
        self._channels = np.zeros((size, size))
        self._taps = tuple(np.zeros((kernel, kernel)) for kernel in signature.kernel)
        self._positions = 0

    def update(self, inputs: Array) -> None:
        """Adds a batch, (batch, …, in) of a linear layer or (batch, in, h, w) of a convolution.

        Raises:
            InputError: another number of channels, or values that are NaN or infinite.
        """
        self._check(inputs)
        linear = self.signature.kind == "linear"
        seen = inputs if linear else np.moveaxis(self._read_by_the_kernel(inputs), 1, -1)
        vectors = seen.reshape(-1, seen.shape[-1])  # (positions, in)
        self._channels += self._gram(vectors)
        self._positions += len(vectors)
        for axis, taps in zip((2, 3), self._taps, strict=True):
            if len(taps) > 1:  # one tap correlates with itself alone
                taps += self._gram(_read_by_taps(inputs, axis, len(taps), self.signature))

    def moment(self) -> InputMoment:
        """Returns the averages so far.

        Raises:
            InputError: no batch has come.
        """
        if not self._positions:
            raise InputError(
                f"averaging the inputs of the layer '{self.name}'",
                found="no calibration data",
                accepted="at least one batch",
                remedy="give a data set with samples, or set calibration: {batches: 0} in the recipe",
            )
        height, width = (_correlation(taps) for taps in self._taps)
        return InputMoment(self._channels / self._positions, height, width, self._positions)

    def _gram(self, vectors: Array) -> Array:
        """xᵀ x of (positions, size): (size, size)."""
        chunks = (vectors[start : start + _CHUNK] for start in range(0, len(vectors), _CHUNK))
        return sum((self._product(chunk.T, chunk).astype(np.float64) for chunk in chunks), np.zeros(()))

    def _read_by_the_kernel(self, inputs: Array) -> Array:
        """The pixels that a strided 1×1 kernel reads; of a larger kernel, all."""
        if not self.signature.pointwise:
            return inputs
        down, across = self.signature.stride
        return inputs[:, :, ::down, ::across]

    def _check(self, inputs: Array) -> None:
        axis = -1 if self.signature.kind == "linear" else 1
        if inputs.ndim < 2 or inputs.shape[axis] != self.signature.in_channels:
            found, accepted = f"shape {inputs.shape}", f"{self.signature.in_channels} channels on axis {axis}"
        elif not np.isfinite(inputs).all():
            found, accepted = f"{int((~np.isfinite(inputs)).sum())} values that are NaN or infinite", "finite values"
        else:
            return
        raise InputError(
            f"reading calibration data at the layer '{self.name}'",
            found=found,
            accepted=accepted,
            remedy="check the calibration data, and that the dense model gives finite outputs on it",
        )


def _correlation(products: Array) -> Array:
    """Scales sums of products to a mean of 1 on the diagonal; the identity where nothing was summed."""
    energy = np.trace(products)
    return products * (len(products) / energy) if energy > 0 else np.eye(len(products))


def _read_by_taps(inputs: Array, axis: int, taps: int, signature: LayerSignature) -> Array:
    """What each tap of a kernel reads along one axis: (everything else, taps)."""
    padding, dilation = signature.padding[axis - 2], signature.dilation[axis - 2]
    pads = [(0, 0)] * inputs.ndim
    pads[axis] = (padding, padding)
    padded = np.pad(inputs, pads)
    length = padded.shape[axis] - dilation * (taps - 1)
    starts = range(0, dilation * taps, dilation)
    return np.stack([padded.take(range(start, start + length), axis).ravel() for start in starts], 1)


@dataclass(frozen=True)
class Metric:
    """Square roots of a moment's factors, and their inverses, by kernel axis: 1 in, 2 height, 3 width."""

    roots: dict[int, Array]
    inverses: dict[int, Array]

    @classmethod
    def of(cls, moment: InputMoment, *, damping: float = 0.01) -> Metric:
        """Returns the metric of a moment.

        Args:
            moment: of the layer's inputs.
            damping: this share of the mean squared input is added to every direction, so that a direction that
                the calibration data never showed still counts a little, and roots can be inverted.
        """
        roots, inverses = {}, {}
        for axis, matrix in ((1, moment.channels), (2, moment.height), (3, moment.width)):
            values, vectors = np.linalg.eigh(matrix)
            floor = damping * max(float(values.mean()), np.finfo(np.float64).tiny)
            root = np.sqrt(np.maximum(values, 0.0) + floor)
            roots[axis] = (vectors * root) @ vectors.T
            inverses[axis] = (vectors / root) @ vectors.T
        return cls(roots, inverses)

    def whiten(self, kernel: Array) -> Array:
        """Returns (out, in, kh, kw) in coordinates where the weighted error is the plain one."""
        return along_axes(kernel, self.roots)

    def unwhiten(self, factor: Array, axes: Sequence[int]) -> Array:
        """Takes a factor with four axes back, along those of its axes that are the layer's own."""
        return along_axes(factor, {axis: self.inverses[axis] for axis in axes})


def along_axes(array: Array, matrices: dict[int, Array]) -> Array:
    """Multiplies every named axis by its matrix."""
    for axis, matrix in matrices.items():
        if matrix.shape != (1, 1):
            array = np.moveaxis(np.tensordot(matrix, array, axes=(1, axis)), 0, axis)
        else:
            array = array * matrix[0, 0]
    return array


def weighted_norm(kernel: Array, metric: Metric | None) -> float:
    """Returns ‖W C^½‖F of a kernel with four axes, or ‖W‖F without a metric."""
    if prod(kernel.shape) == 0:
        return 0.0
    return float(np.linalg.norm(kernel if metric is None else metric.whiten(kernel)))
