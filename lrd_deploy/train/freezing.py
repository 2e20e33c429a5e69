"""Sequential freezing: which factors stand still when.

Two groups, A = {down; first, last} and B = {up; core}. A frozen factor costs no weight gradient, no optimizer step and,
on many machines, no communication. Everything that is not a factor always learns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from lrd_deploy.decompose.layers import FactorGroup
from lrd_deploy.decompose.surgery import factorised_layers
from lrd_deploy.errors import InputError, UsageError
from lrd_deploy.recipe.settings import Freezing, NoFreezing, RegularFreezing, SequentialFreezing
from lrd_deploy.records import FrozenGroup

_OTHER: dict[FactorGroup, FactorGroup] = {"A": "B", "B": "A"}


def frozen_group(freezing: Freezing, epoch: int, step: int = 0) -> FrozenGroup:
    """Returns the group that stands still in that epoch and optimizer step, both counted from 0 since the start.

    Source: regular, arXiv 2407.20266 section 2.2; sequential, arXiv 2309.03824.
    """
    match freezing:
        case NoFreezing():
            return "none"
        case RegularFreezing():
            return "A"
        case SequentialFreezing(period=period, unit=unit, first_frozen=first):
            turns = (step if unit == "steps" else epoch) // period
            return first if turns % 2 == 0 else _OTHER[first]


def phases(freezing: Freezing) -> tuple[FrozenGroup, ...]:
    """Returns the phases that a schedule goes through, each once."""
    match freezing:
        case NoFreezing():
            return ("none",)
        case RegularFreezing():
            return ("A",)
        case SequentialFreezing():
            return ("A", "B")


def refuse_short_run(freezing: Freezing, *, epochs: float, steps: float) -> None:
    """Refuses a run of so many epochs and optimizer steps in which one group would never learn.

    Raises:
        UsageError: the run ends before the first period does.
    """
    if not isinstance(freezing, SequentialFreezing):
        return
    total = steps if freezing.unit == "steps" else epochs
    if freezing.period >= total:
        raise UsageError(
            "freezing factors in turn",
            found=f"a period of {freezing.period} {freezing.unit} in a run of {total}",
            accepted=f"fewer than {total}, or group {freezing.first_frozen} would never learn",
            remedy="shorten 'period', or train for longer",
        )


def freeze_(model: nn.Module, group: FrozenGroup) -> None:
    """Freezes, in place, that group of every factorised layer and lets the other learn.

    A frozen weight has `requires_grad=False` and `grad=None`: with a zero gradient, momentum and weight decay would
    still move it.
    """
    for _, weight, owner in factor_weights(model):
        weight.requires_grad_(owner != group)
        if owner == group:
            weight.grad = None


def factor_weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, FactorGroup]]:
    """Yields the factors' names, weights and groups; a bias is no factor."""
    for layer_name, layer in factorised_layers(model).items():
        for name, owner in layer.groups.items():
            yield f"{layer_name}.{name}".lstrip("."), getattr(layer, name).weight, owner


def factor_groups(model: nn.Module) -> dict[FactorGroup, tuple[str, ...]]:
    """Returns the names of the factors in each group."""
    names: dict[FactorGroup, list[str]] = {"A": [], "B": []}
    for name, _, owner in factor_weights(model):
        names[owner].append(name)
    return {group: tuple(factors) for group, factors in names.items()}


@dataclass
class FreezingSchedule:
    """Sequential freezing for anybody's training loop::

        freezing = FreezingSchedule(model, optimizer)
        for epoch in range(epochs):
            freezing.begin(epoch)
            ...
        freezing.finish()

    The optimizer holds every parameter from the start; those without a gradient it skips. With DistributedDataParallel,
    wrap the model anew whenever `begin` returns True, for the wrapper looks at `requires_grad` once.

    Attributes:
        model: decomposed, and not wrapped.
        optimizer: needed where `optimizer_state` is "reset"; where given, it must hold every factor. Without it
            `finish` looks whether any factor has learned.
        freezing: who stands still, and when.
        frozen: the group that stands still now.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer | None = None
    freezing: Freezing = field(default_factory=SequentialFreezing)
    frozen: FrozenGroup = field(default="none", init=False)
    _seen: dict[str, int] = field(default_factory=dict, init=False, repr=False)
    _start: dict[str, int] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuses a model in which nothing could be frozen, or not without freezing something else.

        Raises:
            InputError: the model is wrapped or compiled, has no factorised layer, or shares a factor's weight; the
                optimizer is missing or lacks a factor.
        """
        if isinstance(self.model, nn.parallel.DistributedDataParallel):
            raise _unusable(
                "a model inside DistributedDataParallel, which looks at requires_grad only once",
                "the model itself",
                "pass model.module, and wrap it again whenever begin() returns True",
            )
        if isinstance(self.freezing, NoFreezing):
            return
        if not factorised_layers(self.model):
            raise _unusable(
                "no factorised layer, so both groups are empty",
                "a decomposed model",
                "decompose it first, or use 'freezing: none'",
            )
        _refuse_shared(self.model)
        if isinstance(self.freezing, SequentialFreezing):
            _refuse_compiled(self.model)
            _refuse_optimizer(self.model, self.optimizer, self.freezing)

    def begin(self, epoch: int, step: int = 0) -> bool:
        """Enters the phase of that epoch and optimizer step, counted from 0; tells whether another group froze.

        Raises:
            InputError: the weights that stood still until now have moved.
        """
        return self.enter(frozen_group(self.freezing, epoch, step))

    def enter(self, group: FrozenGroup) -> bool:
        """Freezes that group instead of the present one; tells whether it is another."""
        if group == self.frozen:
            return False
        self.check()
        if self.optimizer is None and not self._start:
            self._start = self._factors()
        freeze_(self.model, group)
        self.frozen = group
        frozen = {name: weight for name, weight, owner in factor_weights(self.model) if owner == group}
        if isinstance(self.freezing, SequentialFreezing) and self.freezing.optimizer_state == "reset":
            self._reset(frozen.values())
        self._seen = {name: _bits(weight) for name, weight in frozen.items()}
        return True

    def check(self) -> None:
        """Refuses frozen weights that are no longer bit for bit what they were when they froze.

        Raises:
            InputError: something updates parameters that have no gradient.
        """
        weights = {name: weight for name, weight, _ in factor_weights(self.model)}
        moved = [name for name, bits in self._seen.items() if _bits(weights[name]) != bits]
        if moved:
            raise _unusable(
                f"{len(moved)} frozen weights have moved, '{moved[0]}.weight' first",
                "an optimizer that leaves parameters without a gradient alone",
                "use one that skips grad=None, as all of torch.optim do, and no hook that writes weights",
            )

    def finish(self) -> None:
        """Lets everything learn again.

        Raises:
            InputError: no optimizer was given, and no factor has moved.
        """
        self.enter("none")
        if self._start and self._start == self._factors():
            raise _unusable(
                "no factor that has moved since the first phase began",
                "an optimizer that holds every factor",
                "make it after decompose_(), and pass it as the second argument",
            )

    def _factors(self) -> dict[str, int]:
        return {name: _bits(weight) for name, weight, _ in factor_weights(self.model)}

    def _reset(self, weights: Iterable[nn.Parameter]) -> None:
        """Zeroes the state of weights that freeze: at once, so that a checkpoint of any phase holds what comes next."""
        for weight in weights:
            for value in self.optimizer.state.get(weight, {}).values():
                if isinstance(value, torch.Tensor):
                    value.zero_()


def _bits(weight: nn.Parameter) -> int:
    """A number that changes when a bit of the weight does."""
    size = {2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()]
    bits = weight.detach().contiguous().view(size)
    return int(bits.sum(dtype=torch.int64)) ^ int((bits.to(torch.int64) ** 2).sum())


def _refuse_shared(model: nn.Module) -> None:
    """A weight with two owners would be frozen for one while the other learns."""
    own = [module.parameters(recurse=False) for module in model.modules()]
    owners = Counter(id(parameter) for parameters in own for parameter in parameters)
    shared = [name for name, weight, _ in factor_weights(model) if owners[id(weight)] > 1]
    if shared:
        raise _unusable(
            f"the weight of '{shared[0]}' is shared with another layer",
            "factors of their own for every layer",
            "name the layer under 'skip', or give it a copy of its weight",
        )


def _refuse_compiled(model: nn.Module) -> None:
    """What the compiler made for one phase may run in another: pytorch issue 139476."""
    if any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in model.modules()):
        raise _unusable(
            "a compiled model, whose code for one phase may run in another (pytorch issue 139476)",
            "the model itself",
            "compile it anew whenever begin() returns True, and leave the one that is passed here as it is",
        )


def _refuse_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer | None, freezing: SequentialFreezing) -> None:
    """An optimizer that was made while a factor stood still would never move it again."""
    if optimizer is None:
        if freezing.optimizer_state == "reset":
            raise _unusable("no optimizer", "one, to reset its state", "pass it as the second argument")
        return
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = [name for name, weight, _ in factor_weights(model) if id(weight) not in held]
    if missing:
        raise _unusable(
            f"an optimizer without {len(missing)} factors, '{missing[0]}.weight' first",
            "one that holds every factor from the start",
            "make it after decompose_() and while every factor requires a gradient: freeze_(model, 'none')",
        )


def _unusable(found: str, accepted: str, remedy: str) -> InputError:
    return InputError("freezing factors in turn", found=found, accepted=accepted, remedy=remedy)
