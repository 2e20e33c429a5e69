"""Multiply–accumulates and parameters of a layer, dense or factorised, in closed form. Biases are not counted."""

from __future__ import annotations

from math import prod

from lrd_deploy.ranks.forms import FactorShape, factor_shapes
from lrd_deploy.records import Choice, KeepDense, LayerSignature


def parameters(signature: LayerSignature, choice: Choice) -> int:
    """Returns the number of weights."""
    return sum(_weights(signature, factor) for factor in _factors(signature, choice))


def macs(signature: LayerSignature, choice: Choice) -> int:
    """Returns the multiply–accumulates for one sample.

    Every factor counts at the size of its own output: a Tucker-2 `first` runs at the input's resolution.
    """
    total, size = 0, signature.spatial
    for factor in _factors(signature, choice):
        size = _size_after(signature, factor, size)
        total += _weights(signature, factor) * prod(size)
    return total


def output_size(signature: LayerSignature) -> tuple[int, ...]:
    """Returns the output's spatial size; (tokens,) or () for a linear layer."""
    (dense,) = _factors(signature, KeepDense())
    return _size_after(signature, dense, signature.spatial)


def saves_parameters(signature: LayerSignature, choice: Choice) -> bool:
    """True where the factors have fewer weights than the layer."""
    return parameters(signature, choice) < parameters(signature, KeepDense())


def _factors(signature: LayerSignature, choice: Choice) -> tuple[FactorShape, ...]:
    return factor_shapes(signature.in_channels, signature.out_channels, choice)


def _weights(signature: LayerSignature, factor: FactorShape) -> int:
    area = prod(k for k, placed in zip(signature.kernel, factor.places, strict=True) if placed)
    groups = signature.groups if factor.name == "dense" else 1
    return factor.in_channels // groups * factor.out_channels * area


def _size_after(signature: LayerSignature, factor: FactorShape, size: tuple[int, ...]) -> tuple[int, ...]:
    s = signature
    if s.kind == "linear":
        return size
    axes = zip(size, s.kernel, s.stride, s.padding, s.dilation, factor.places, strict=True)
    return tuple((n + 2 * p - d * (k - 1) - 1) // stride + 1 if placed else n for n, k, stride, p, d, placed in axes)
