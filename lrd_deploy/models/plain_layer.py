"""Layers of other libraries that compute what one of PyTorch's own does, seen as that."""

from __future__ import annotations

import sys

import torch
from torch import nn


def is_transposed_linear(module: object) -> bool:
    """True for the `Conv1D` of transformers, as in GPT-2: a linear layer whose weight is stored (in, out)."""
    library = sys.modules.get("transformers.pytorch_utils")  # who has such a layer has imported it
    return library is not None and type(module) is library.Conv1D


def plain_layer(module: nn.Module) -> nn.Module:
    """Returns an `nn.Linear` that shares a transposed linear layer's tensors; any other module as it is."""
    if not is_transposed_linear(module):
        return module
    inputs, outputs = module.weight.shape
    linear = nn.Linear(inputs, outputs, bias=module.bias is not None, device="meta", dtype=module.weight.dtype)
    with torch.no_grad():
        linear.weight = nn.Parameter(module.weight.T, requires_grad=module.weight.requires_grad)  # (out, in)
    linear.bias = module.bias
    return linear.train(module.training)
