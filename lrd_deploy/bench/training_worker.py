"""The process of one training launch: `python -m lrd_deploy.bench.training_worker PLAN.json SAMPLES.json`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import torch
from torch import Tensor, nn

from lrd_deploy.bench.launch import Clock, timed
from lrd_deploy.bench.training import TrainingLaunchPlan, TrainingLaunchSamples
from lrd_deploy.decompose.surgery import load_lowrank_
from lrd_deploy.errors import LrdError
from lrd_deploy.models.data import batches, load_data
from lrd_deploy.models.source import load_model, load_weights_, make_importable
from lrd_deploy.recipe.settings import Training
from lrd_deploy.records import FrozenGroup
from lrd_deploy.train.devices import PhaseModels
from lrd_deploy.train.freezing import freeze_, phases
from lrd_deploy.train.optimizer import make_optimizer
from lrd_deploy.train.step import TrainingStep

_ROUNDS, _STEPS, _BATCHES = 5, 2, 4
_TINY_RATE = 1e-6  # the weights stay put; a step costs the same


def measure(plan: TrainingLaunchPlan) -> TrainingLaunchSamples:
    """Builds both models, dense first or last, and times their steps in interleaved blocks.

    Each arm trains as its section of the recipe says: optimizer, layout, loss.
    """
    torch.set_num_threads(plan.threads)
    make_importable(plan.recipe_folder)
    recipe = plan.recipe
    stored = list(islice(batches(load_data(recipe.data, seed=recipe.seed).train), _BATCHES))
    makers = {"dense": _dense, "lowrank": _lowrank}
    settings = {"dense": recipe.dense or recipe.fine_tune, "lowrank": recipe.fine_tune}
    steps = {
        name: _Steps(makers[name](plan), settings[name], cycle(stored))
        for name in (makers if plan.dense_first else reversed(makers))
    }
    arms: dict[str, Callable[[], None]] = {"dense": partial(steps["dense"], "none")}
    arms |= {phase: partial(steps["lowrank"], phase) for phase in phases(recipe.fine_tune.freezing)}
    measured = interleave_steps(arms, time.perf_counter_ns)
    return TrainingLaunchSamples(batch=len(stored[0][1]), dense_ms=measured.pop("dense"), lowrank_ms=measured)


def interleave_steps(steps: Mapping[str, Callable[[], None]], clock: Clock) -> dict[str, tuple[float, ...]]:
    """Times the arms in rounds of one block each, in both directions in turn; a block's first step is discarded."""
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        timed(step, clock, 3)  # warm-up
    for number in range(_ROUNDS):
        for name in steps if number % 2 == 0 else reversed(steps):
            steps[name]()
            samples[name].append(min(timed(steps[name], clock, _STEPS)) / 1e6)
    return {name: tuple(values) for name, values in samples.items()}


class _Steps:
    """A model with its optimizer; a call is one training step in a phase."""

    def __init__(self, model: nn.Module, settings: Training, data: Iterator[tuple[Tensor, Tensor]]) -> None:
        layout = torch.channels_last if settings.channels_last else torch.contiguous_format
        self.model, self.data = model.to(memory_format=layout).train(), data
        self.step = TrainingStep(self.model, make_optimizer(self.model, settings), settings)
        self.models = PhaseModels(self.model, compiled=settings.compile)
        self.phase: FrozenGroup = "none"

    def __call__(self, phase: FrozenGroup) -> None:
        if phase != self.phase:  # as in training, where a phase lasts an epoch
            freeze_(self.model, phase)
            self.phase = phase
        self.step.take(self.models.of(phase), [next(self.data)], _TINY_RATE)


def _dense(plan: TrainingLaunchPlan) -> nn.Module:
    return load_weights_(load_model(plan.recipe.model).module, plan.dense_weights)


def _lowrank(plan: TrainingLaunchPlan) -> nn.Module:
    return load_lowrank_(load_model(plan.recipe.model).module, plan.plan, plan.lowrank_weights)


if __name__ == "__main__":
    try:
        measure(TrainingLaunchPlan.read(Path(sys.argv[1]))).write(Path(sys.argv[2]))
    except LrdError as exc:
        sys.exit(str(exc))
