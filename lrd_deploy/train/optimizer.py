"""The optimizer, its learning rate over the steps, and what decays."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lrd_deploy.decompose.layers import FactorisedLayer, Tucker2Conv2d
from lrd_deploy.decompose.surgery import factorised_layers
from lrd_deploy.recipe.settings import FineTuning, Training
from lrd_deploy.train.freezing import factor_weights

_SCALE = "rate_scale"  # of a parameter group: what the schedule's rate is multiplied by


def make_optimizer(model: nn.Module, settings: Training) -> torch.optim.Optimizer:
    """Returns the optimizer for every parameter; the frozen ones are skipped because they have no gradient.

    Vectors (biases, normalisation) are not decayed; factors of each group have a rate of their own, and no decay of
    their own where their product decays.
    """
    owners = {weight: owner for _, weight, owner in factor_weights(model)}
    others = [parameter for parameter in model.parameters() if parameter not in owners]
    groups = [
        _group([parameter for parameter in others if parameter.ndim >= 2], settings.weight_decay),
        _group([parameter for parameter in others if parameter.ndim < 2], 0.0),
    ]
    if isinstance(settings, FineTuning):
        decay = settings.weight_decay if settings.factor_decay == "each" else 0.0
        scales = settings.factor_rates.model_dump()
    else:
        decay, scales = settings.weight_decay, {"A": 1.0, "B": 1.0}
    for group, scale in scales.items():
        groups.append(_group([weight for weight, owner in owners.items() if owner == group], decay, scale))
    groups = [group for group in groups if group["params"]]
    match settings.optimizer:
        case "sgd":
            return _sgd(groups, settings)
        case "adamw":
            return torch.optim.AdamW(groups, settings.learning_rate, fused=True)


def _group(parameters: list[nn.Parameter], decay: float, scale: float = 1.0) -> dict:
    return {"params": parameters, "weight_decay": decay, _SCALE: scale}


def _sgd(groups: list[dict], settings: Training) -> torch.optim.SGD:
    """SGD with Nesterov momentum, whose buffers all exist from the start: the fused step refuses to mix."""
    momentum = settings.momentum
    optimizer = torch.optim.SGD(groups, settings.learning_rate, momentum, nesterov=momentum > 0, fused=True)
    if momentum > 0:
        for parameter in (parameter for group in groups for parameter in group["params"]):
            # One step makes it the gradient.
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def set_learning_rate_(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the schedule's rate, times each group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group[_SCALE]


def learning_rate_at(step: int, steps: int, settings: Training) -> float:
    """Returns the rate of that step out of `steps`: linear warm-up, then a cosine that ends at zero."""
    warmup = max(round(settings.warmup_share * steps), 1)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(steps - warmup, 1)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


# Decay of the product -----------------------------------------------------------------------------------------------


def decay_products_(model: nn.Module, settings: FineTuning, rate: float) -> None:
    """Moves every factor that learns against the gradient of its product's squared Frobenius norm, halved.

    Apart from the optimizer's own step, as AdamW decays; with SGD the strength is that of a decay inside the step,
    which momentum multiplies. Source: Khodak et al., arXiv 2105.01029, "Frobenius decay".
    """
    momentum = settings.momentum if settings.optimizer == "sgd" else 0.0
    strength = rate * settings.weight_decay / (1 - momentum)
    for layer in factorised_layers(model).values():
        weights = [getattr(layer, name).weight for name in layer.groups]
        learning = [weight for weight in weights if weight.requires_grad]
        if not learning:
            continue
        with torch.enable_grad():
            gradients = torch.autograd.grad(squared_product_norm(layer) / 2, learning)
        with torch.no_grad():
            for weight, gradient in zip(learning, gradients, strict=True):
                weight.sub_(gradient, alpha=strength)


def squared_product_norm(layer: FactorisedLayer) -> Tensor:
    """Returns ‖product of the factors‖²_F, a scalar, from Gram matrices of the rank's size: the product is not made."""
    if isinstance(layer, Tucker2Conv2d):
        first, core, last = layer.first.weight.flatten(1), layer.core.weight, layer.last.weight.flatten(1)
        inside = torch.einsum("ab,bckl->ackl", last.T @ last, core)  # (r_out, r_in, k, k)
        return (torch.einsum("ackl,cd->adkl", inside, first @ first.T) * core).sum()
    down, up = layer.down.weight.flatten(1), layer.up.weight.transpose(0, 1).flatten(1)  # (r, in·k), (r, out·k)
    return ((down @ down.T) * (up @ up.T)).sum()
