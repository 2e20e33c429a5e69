"""BatchNorm statistics after decomposition: the activations moved, the running averages have to follow."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lrd_deploy.models.example import Example, call


@torch.no_grad()
def reestimate_batchnorm_(model: nn.Module, inputs: Iterable[Example]) -> int:
    """Recomputes, in place, every BatchNorm's mean and variance as plain averages over `inputs`.

    Weights do not change, and each layer's momentum and mode are as before.

    Args:
        model: any module; without BatchNorm nothing is run.
        inputs: batches, as the model takes them.

    Returns:
        The number of batches used.

    Source: without it an accurate decomposition can look useless, as the same step does after quantisation
    (NNCF pull request 41: ResNet-18 49.4 → 66.9 % from statistics alone).
    """
    norms = [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    if not norms:
        return 0
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    model.eval()
    batches = 0
    try:
        for batch in inputs:
            if batches == 0:  # without a batch the old statistics stay
                _average_from_here_(norms)
            call(model, batch)
            batches += 1
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, training in modes.items():
            module.training = training
    return batches


def _average_from_here_(norms: Iterable[_BatchNorm]) -> None:
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch's word for a cumulative average
        norm.train()
