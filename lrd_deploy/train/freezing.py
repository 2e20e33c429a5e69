"""Sequential freezing: which factors stand still in which epoch.

Two groups, A = {down; first, last} and B = {up; core}. A frozen factor costs no weight gradient, no optimizer step and,
on many machines, no communication. Everything that is not a factor always learns.
"""

from __future__ import annotations

from torch import nn

from lrd_deploy.decompose.layers import FactorGroup
from lrd_deploy.decompose.surgery import factorised_layers
from lrd_deploy.recipe.settings import Freezing, NoFreezing, RegularFreezing, SequentialFreezing
from lrd_deploy.records import FrozenGroup

_OTHER: dict[FactorGroup, FactorGroup] = {"A": "B", "B": "A"}


def frozen_group(freezing: Freezing, epoch: int) -> FrozenGroup:
    """Returns the group that stands still in that epoch, counted from 0.

    Source: regular, arXiv 2407.20266 section 2.2; sequential, arXiv 2309.03824.
    """
    match freezing:
        case NoFreezing():
            return "none"
        case RegularFreezing():
            return "A"
        case SequentialFreezing(period=period, first_frozen=first):
            return first if (epoch // period) % 2 == 0 else _OTHER[first]


def phases(freezing: Freezing) -> tuple[FrozenGroup, ...]:
    """Returns the phases that a schedule goes through, each once."""
    match freezing:
        case NoFreezing():
            return ("none",)
        case RegularFreezing():
            return ("A",)
        case SequentialFreezing():
            return ("A", "B")


def freeze_(model: nn.Module, group: FrozenGroup) -> None:
    """Freezes, in place, that group of every factorised layer and lets the other learn.

    A frozen weight has `requires_grad=False` and `grad=None`: with a zero gradient, momentum and weight decay would
    still move it.
    """
    for layer in factorised_layers(model).values():
        for name, owner in layer.groups.items():
            weight = getattr(layer, name).weight  # a bias always learns: it is no factor
            weight.requires_grad_(owner != group)
            if owner == group:
                weight.grad = None
