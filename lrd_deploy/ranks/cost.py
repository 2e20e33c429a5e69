"""Multiply–accumulates and parameters of a layer, dense or factorised, in closed form. Biases are not counted."""

from __future__ import annotations

from math import prod

from lrd_deploy.records import SVD, Choice, KeepDense, LayerSignature, Tucker2


def parameters(signature: LayerSignature, choice: Choice) -> int:
    """Returns the number of weights."""
    s, area = signature, prod(signature.kernel)
    match choice:
        case KeepDense():
            return s.in_channels // s.groups * s.out_channels * area
        case SVD(rank=rank):
            return rank * (s.in_channels + s.out_channels)
        case Tucker2(rank_in=rank_in, rank_out=rank_out):
            return s.in_channels * rank_in + rank_in * rank_out * area + rank_out * s.out_channels


def macs(signature: LayerSignature, choice: Choice) -> int:
    """Returns the multiply–accumulates for one sample.

    A strided 1×1 pair strides in its first factor; a Tucker-2 `first` runs at the input's resolution.
    """
    s = signature
    out = prod(output_size(s))
    match choice:
        case KeepDense() | SVD():
            return parameters(s, choice) * out
        case Tucker2(rank_in=rank_in, rank_out=rank_out):
            entry = s.in_channels * rank_in * prod(s.spatial)
            return entry + (rank_in * rank_out * prod(s.kernel) + rank_out * s.out_channels) * out


def output_size(signature: LayerSignature) -> tuple[int, ...]:
    """Returns the output's spatial size; (tokens,) or () for a linear layer."""
    s = signature
    if s.kind == "linear":
        return s.spatial
    axes = zip(s.spatial, s.kernel, s.stride, s.padding, s.dilation, strict=True)
    return tuple((n + 2 * p - d * (k - 1) - 1) // stride + 1 for n, k, stride, p, d in axes)


def saves_parameters(signature: LayerSignature, choice: Choice) -> bool:
    """True where the factors have fewer weights than the layer."""
    return parameters(signature, choice) < parameters(signature, KeepDense())
