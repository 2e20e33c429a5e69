"""Which layer, in which form, a factor chain is: what its latency can be looked up under."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lrd_deploy.ranks.forms import factor_shapes
from lrd_deploy.records import SVD, ChannelSVD, Choice, LayerSignature, SpatialSVD, Tucker2
from lrd_deploy.rewrite.factor_chain import FactorChain
from lrd_deploy.rewrite.weighted_node import in_channels, out_channels, weight
from lrd_deploy.rewrite.window import Window, Windows, windows


def layer_of(chain: FactorChain, input_shape: Sequence[int | str] | None) -> tuple[LayerSignature, Choice] | str:
    """Returns the layer that a chain stands for and its form, or why it cannot be timed as one.

    Args:
        chain: one that `check_chain` lets pass.
        input_shape: of the value that it reads, with the batch first; None where it is not known.
    """
    dtypes = {weight(node).dtype for node in chain.nodes}
    if dtypes != {np.dtype(np.float32)}:
        return f"its weights are {', '.join(sorted(map(str, dtypes)))}, and latencies are of float32"
    spatial = _spatial(chain, input_shape)
    if isinstance(spatial, str):
        return spatial
    for choice in _forms(chain):
        placed = _placed(chain, choice)
        if placed is not None:
            return _layer(chain, choice, placed, spatial)
    return "its strides, padding or dilation are not where a form of factors has them"


def _spatial(chain: FactorChain, shape: Sequence[int | str] | None) -> tuple[int, ...] | str:
    """The size of the input without batch and channels, or why it is not known."""
    first = chain.nodes[0]
    if first.op == "Gemm":
        return ()
    if shape is None or len(shape) < 2:
        return "the shape of its input is not known"
    sizes = tuple(shape[2:] if first.op == "Conv" else shape[1:-1])
    if any(isinstance(size, str) for size in sizes):
        return f"the size of its input is not fixed ({' × '.join(map(str, sizes))})"
    return sizes


def _forms(chain: FactorChain) -> tuple[Choice, ...]:
    if len(chain.nodes) == 3:
        rank_in, rank_out = chain.ranks
        return (Tucker2(rank_in=rank_in, rank_out=rank_out),)
    (rank,) = chain.ranks
    return SVD(rank=rank), ChannelSVD(rank=rank), ChannelSVD(rank=rank, kernel_on="up"), SpatialSVD(rank=rank)


def _placed(chain: FactorChain, choice: Choice) -> Windows | None:
    """The layer's window, where every factor spans just what the form lets it span and pads alike at both ends."""
    layer = [Window(), Window()]
    for node, shape in zip(chain.nodes, factor_shapes(1, 1, choice), strict=True):
        for axis, window in enumerate(windows(node)):
            if shape.places[axis]:
                layer[axis] = window
            elif window != Window():
                return None
    height, width = layer
    is_matrix = (height.kernel, width.kernel) == (1, 1)
    even = all(not isinstance(window.pads, str) and window.pads[0] == window.pads[1] for window in layer)
    return (height, width) if even and (len(chain.nodes) == 3 or is_matrix == isinstance(choice, SVD)) else None


def _layer(
    chain: FactorChain, choice: Choice, placed: Windows, spatial: tuple[int, ...]
) -> tuple[LayerSignature, Choice]:
    height, width = placed
    signature = LayerSignature(
        kind="conv2d" if chain.nodes[0].op == "Conv" else "linear",
        in_channels=in_channels(chain.nodes[0]),
        out_channels=out_channels(chain.nodes[-1]),
        kernel=(height.kernel, width.kernel),
        stride=(height.stride, width.stride),
        padding=(height.pads[0], width.pads[0]),
        dilation=(height.dilation, width.dilation),
        spatial=spatial,
    )
    return signature, choice
