"""What each form is made of: its factors in data-flow order. Costs, graphs and modules are all derived from this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lrd_deploy.records import SVD, ChannelSVD, Choice, KeepDense, LayerSignature, SpatialSVD, Tucker2

FactorName = Literal["dense", "down", "up", "first", "core", "last"]


@dataclass(frozen=True)
class FactorShape:
    """One factor of a layer.

    `places` says along which axes, (height, width), the factor has the layer's kernel, stride, padding and dilation.
    """

    name: FactorName
    in_channels: int
    out_channels: int
    places: tuple[bool, bool]


_BOTH, _NEITHER = (True, True), (False, False)


def factor_shapes(in_channels: int, out_channels: int, choice: Choice) -> tuple[FactorShape, ...]:
    """Returns the factors of a layer of these widths in that form; a dense layer is its own only factor.

    A pair for a 1×1 convolution strides in `down`, where that saves the most work.
    """
    entry, exit_ = in_channels, out_channels
    match choice:
        case KeepDense():
            return (FactorShape("dense", entry, exit_, _BOTH),)
        case SVD(rank=rank) | ChannelSVD(rank=rank, kernel_on="down"):
            return FactorShape("down", entry, rank, _BOTH), FactorShape("up", rank, exit_, _NEITHER)
        case ChannelSVD(rank=rank):
            return FactorShape("down", entry, rank, _NEITHER), FactorShape("up", rank, exit_, _BOTH)
        case SpatialSVD(rank=rank):
            return FactorShape("down", entry, rank, (True, False)), FactorShape("up", rank, exit_, (False, True))
        case Tucker2(rank_in=rank_in, rank_out=rank_out):
            return (
                FactorShape("first", entry, rank_in, _NEITHER),
                FactorShape("core", rank_in, rank_out, _BOTH),
                FactorShape("last", rank_out, exit_, _NEITHER),
            )


def ranks_of(choice: Choice) -> tuple[int, ...]:
    """Returns the widths between the factors; none for a dense layer."""
    return tuple(factor.out_channels for factor in factor_shapes(1, 1, choice)[:-1])


def largest_ranks(signature: LayerSignature, choice: Choice) -> tuple[int, ...]:
    """Returns the rank at which the form is exact, for each of its ranks; more would be waste."""
    s = signature
    height, width = s.kernel
    match choice:
        case KeepDense():
            return ()
        case SVD() | ChannelSVD() | SpatialSVD():
            down, up = factor_shapes(s.in_channels, s.out_channels, choice)
            columns = s.in_channels * (height if down.places[0] else 1) * (width if down.places[1] else 1)
            rows = s.out_channels * (height if up.places[0] else 1) * (width if up.places[1] else 1)
            return (min(rows, columns),)
        case Tucker2():
            area = height * width
            return min(s.in_channels, s.out_channels * area), min(s.out_channels, s.in_channels * area)


def fits(signature: LayerSignature, choice: Choice) -> bool:
    """True where the form is one for this kind of layer."""
    return isinstance(choice, KeepDense) or (isinstance(choice, SVD) == signature.pointwise)
