"""The process of one training launch: `python -m lrd_deploy.bench.training_worker PLAN.json SAMPLES.json`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import torch
from torch import nn

from lrd_deploy.bench.step_timer import interleave_steps, step_timer
from lrd_deploy.bench.training import TrainingLaunchPlan, TrainingLaunchSamples
from lrd_deploy.decompose.surgery import load_lowrank_
from lrd_deploy.errors import LrdError
from lrd_deploy.models.data import batches, load_data
from lrd_deploy.models.example import mapped
from lrd_deploy.models.source import load_model, load_weights_, make_importable
from lrd_deploy.recipe.settings import Training
from lrd_deploy.records import FrozenGroup
from lrd_deploy.train.devices import PhaseModels
from lrd_deploy.train.freezing import freeze_, phases
from lrd_deploy.train.optimizer import make_optimizer
from lrd_deploy.train.step import Batch, TrainingStep

_BATCHES = 4
_TINY_RATE = 1e-6  # the weights stay put; a step costs the same


def measure(plan: TrainingLaunchPlan) -> TrainingLaunchSamples:
    """Builds both models, dense first or last, and times their steps in interleaved blocks.

    Each arm trains as its section of the recipe says: optimizer, layout, loss.
    """
    torch.set_num_threads(plan.threads)
    make_importable(plan.recipe_folder)
    recipe = plan.recipe
    loaded = islice(batches(load_data(recipe.data, seed=recipe.seed).train), _BATCHES)
    moved = partial(torch.Tensor.to, device=plan.device)
    stored = [(mapped(inputs, moved), moved(labels)) for inputs, labels in loaded]
    makers = {"dense": _dense, "lowrank": _lowrank}
    settings = {"dense": recipe.dense or recipe.fine_tune, "lowrank": recipe.fine_tune}
    steps = {
        name: _Steps(makers[name](plan).to(plan.device), settings[name], cycle(stored))
        for name in (makers if plan.dense_first else reversed(makers))
    }
    arms: dict[str, Callable[[], None]] = {"dense": partial(steps["dense"], "none")}
    arms |= {phase: partial(steps["lowrank"], phase) for phase in phases(recipe.fine_tune.freezing)}
    times = interleave_steps(arms, step_timer(plan.device, time.perf_counter_ns))
    measured = {name: tuple(sample.wall_ms for sample in samples) for name, samples in times.items()}
    return TrainingLaunchSamples(batch=len(stored[0][1]), dense_ms=measured.pop("dense"), lowrank_ms=measured)


class _Steps:
    """A model with its optimizer; a call is one training step in a phase."""

    def __init__(self, model: nn.Module, settings: Training, data: Iterator[Batch]) -> None:
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
