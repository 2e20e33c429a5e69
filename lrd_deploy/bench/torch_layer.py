"""One layer, dense or factorised, as a PyTorch module with new weights, and an input of its size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lrd_deploy.decompose.layers import FactorisedLayer
from lrd_deploy.decompose.surgery import form_of
from lrd_deploy.records import Choice, KeepDense, LayerSignature


def layer_module(signature: LayerSignature, choice: Choice) -> nn.Module | FactorisedLayer:
    """Returns the layer in that form, with a bias."""
    s = signature
    if s.kind == "linear":
        dense = nn.Linear(s.in_channels, s.out_channels)
    else:
        dense = nn.Conv2d(
            s.in_channels, s.out_channels, s.kernel, s.stride, s.padding, dilation=s.dilation, groups=s.groups
        )
    return dense if isinstance(choice, KeepDense) else form_of(dense, choice)(dense, choice)


def layer_tensor(signature: LayerSignature, batch: int, device: str, dtype: torch.dtype) -> Tensor:
    """Returns a random input: (batch, in, height, width), or (batch, …, in) of a linear layer."""
    shape = (signature.in_channels, *signature.spatial)
    if signature.kind == "linear":
        shape = (*signature.spatial, signature.in_channels)
    return torch.randn(batch, *shape, device=device, dtype=dtype)


def layout_of(signature: LayerSignature, *, channels_last: bool) -> torch.memory_format:
    """Returns the layout of the layer's tensors; channels last is one of convolutions alone."""
    return torch.channels_last if channels_last and signature.kind == "conv2d" else torch.contiguous_format


@contextmanager
def on_threads(threads: int) -> Iterator[None]:
    """Within the block, PyTorch computes on so many CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
