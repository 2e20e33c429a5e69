"""One training loop for the dense model and for fine-tuning: accelerate underneath, resumable at every epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.nn.functional import cross_entropy

from lrd_deploy.errors import InputError, TrainingDiverged
from lrd_deploy.models.data import Data, batches
from lrd_deploy.models.fit import check_labels
from lrd_deploy.models.source import logits
from lrd_deploy.observer import Observer, SilentObserver
from lrd_deploy.recipe.settings import FineTuning, Training
from lrd_deploy.records import Epoch, FrozenGroup
from lrd_deploy.train.checkpoint import Checkpoint, load_newest, save_checkpoint
from lrd_deploy.train.freezing import freeze_, frozen_group


@dataclass(frozen=True)
class TrainingJob:
    """What to train, on what, how, and where its checkpoints go."""

    model: nn.Module
    data: Data
    settings: Training
    seed: int
    checkpoints: Path
    what: str
    clock: Callable[[], float] = field(default=time.perf_counter)


def train(job: TrainingJob, observer: Observer | None = None) -> tuple[Epoch, ...]:
    """Trains `job.model` in place and returns one record per epoch, resumed ones included.

    Each epoch seeds its own random numbers, so that a run resumed from its last checkpoint ends with the very weights
    of a run that was never interrupted.

    Raises:
        TrainingDiverged: the loss is not finite; the last good checkpoint is kept.
    """
    observer = observer or SilentObserver()
    accelerator = Accelerator()
    model = _placed(job.model, accelerator, job.settings)
    optimizer = make_optimizer(model, job.settings)
    done = load_newest(job.checkpoints, model, optimizer)
    records = list(done.epochs)
    loader = accelerator.prepare(job.data.train)
    for epoch in range(len(records), job.settings.epochs):
        _seed_epoch(job, epoch)
        group = _freeze_for_epoch_(model, job.settings, epoch)
        run = _EpochRun(job, accelerator, model, optimizer, loader, epoch)
        records.append(run.train(group, observer))
        _check_weights(job, epoch)
        save_checkpoint(job.checkpoints, model, optimizer, Checkpoint(epochs=tuple(records)))
    freeze_(model, "none")
    return tuple(records)


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    """Returns the share of test samples whose largest logit is their label.

    Raises:
        InputError: the labels are of one class only, which any model could get right.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    right, total, classes = 0, 0, set()
    for inputs, labels in batches(data.test):
        labels = labels.to(device)
        output = logits(model, inputs.to(device))
        check_labels(labels, output.shape[-1], "the test data")
        right += int((output.argmax(-1) == labels).sum())
        total += len(labels)
        classes.update(labels.unique().tolist())
    model.train(was_training)
    if len(classes) < 2:
        raise InputError(
            "measuring accuracy on the test data",
            found=f"labels of {len(classes)} class",
            accepted="two classes or more",
            remedy="shuffle before splitting, or choose another test set",
        )
    return right / total


def chance(data: Data) -> float:
    """Returns the accuracy of always answering the most frequent label of the test data."""
    labels = torch.cat([labels.cpu() for _, labels in batches(data.test)])
    return float(labels.unique(return_counts=True)[1].max() / len(labels))


def make_optimizer(model: nn.Module, settings: Training) -> torch.optim.Optimizer:
    """Returns the optimizer for every parameter; the frozen ones are skipped because they have no gradient.

    Vectors (biases, normalisation) are not decayed.
    """
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    match settings.optimizer:
        case "sgd":
            return _sgd(groups, settings)
        case "adamw":
            return torch.optim.AdamW(groups, settings.learning_rate, fused=True)


def _sgd(groups: list[dict], settings: Training) -> torch.optim.SGD:
    """SGD with Nesterov momentum, whose buffers all exist from the start: the fused step refuses to mix."""
    momentum = settings.momentum
    optimizer = torch.optim.SGD(groups, settings.learning_rate, momentum, nesterov=momentum > 0, fused=True)
    if momentum > 0:
        for parameter in (parameter for group in groups for parameter in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(
                parameter
            )  # one step makes it the gradient
    return optimizer


def learning_rate_at(step: int, steps: int, settings: Training) -> float:
    """Returns the rate of that step out of `steps`: linear warm-up, then a cosine that ends at zero."""
    warmup = max(round(settings.warmup_share * steps), 1)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(steps - warmup, 1)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def _seed_epoch(job: TrainingJob, epoch: int) -> None:
    """Makes an epoch's randomness its own: dropout, and the order that the loader's own generator draws."""
    set_seed(job.seed + epoch)
    generator = getattr(job.data.train, "generator", None)
    if generator is not None:
        generator.manual_seed(job.seed + epoch)


def _check_weights(job: TrainingJob, epoch: int) -> None:
    """The last step of an epoch has no loss after it that would tell."""
    if not all(torch.isfinite(parameter).all() for parameter in job.model.parameters()):
        raise _diverged(job, epoch, "weights that are NaN or infinite")


def _diverged(job: TrainingJob, epoch: int, found: str) -> TrainingDiverged:
    kept = f"; the last good state is in '{job.checkpoints}'" if any(job.checkpoints.glob("epoch-*")) else ""
    return TrainingDiverged(
        f"{job.what}, epoch {epoch + 1}",
        found=found,
        accepted="a finite loss and finite weights",
        remedy=f"lower 'learning_rate' or set 'clip_norm'{kept}",
    )


def _placed(model: nn.Module, accelerator: Accelerator, settings: Training) -> nn.Module:
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    return model.to(accelerator.device).to(memory_format=layout)


def _freeze_for_epoch_(model: nn.Module, settings: Training, epoch: int) -> FrozenGroup:
    group = frozen_group(settings.freezing, epoch) if isinstance(settings, FineTuning) else "none"
    freeze_(model, group)
    return group


@dataclass
class _EpochRun:
    """The pass over the data that makes one `Epoch` record."""

    job: TrainingJob
    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    loader: object
    epoch: int

    def train(self, group: FrozenGroup, observer: Observer) -> Epoch:
        settings, steps = self.job.settings, len(self.loader)
        # Wrapped anew for each phase, after its factors were frozen: wrappers look at requires_grad once.
        wrapped = self.accelerator.prepare_model(self.model)
        wrapped.train()
        started, losses, images = self.job.clock(), [], 0
        for step, (inputs, labels) in enumerate(batches(self.loader)):
            rate = learning_rate_at(self.epoch * steps + step, settings.epochs * steps, settings)
            losses.append(self._step(wrapped, inputs, labels, rate))
            images += len(labels)
            if not math.isfinite(losses[-1]):
                raise _diverged(self.job, self.epoch, f"a loss of {losses[-1]}")
            observer.progress(f"{self.job.what}, epoch {self.epoch + 1} of {settings.epochs}", step + 1, steps)
        seconds = self.job.clock() - started
        return Epoch(
            epoch=self.epoch + 1,
            frozen=group,
            loss=sum(losses) / len(losses),
            accuracy=accuracy(self.model, self.job.data),
            learning_rate=rate,
            seconds=seconds,
            images_per_s=images / seconds if seconds > 0 else 0.0,
        )

    def _step(self, wrapped: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, rate: float) -> float:
        settings = self.job.settings
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = training_step(wrapped, self.optimizer, (inputs, labels), settings, self.accelerator.backward)
        return loss.item()


def training_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: tuple[torch.Tensor, torch.Tensor],
    settings: Training,
    backward: Callable[[torch.Tensor], None] = torch.Tensor.backward,
) -> torch.Tensor:
    """Takes one step: forward, backward, clipping, optimizer. Returns the loss of the batch."""
    loss = training_loss(model, *batch, settings)
    optimizer.zero_grad(set_to_none=True)
    backward(loss)
    if settings.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
    optimizer.step()
    return loss


def training_loss(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, settings: Training) -> torch.Tensor:
    """Returns the mean cross-entropy of one batch.

    Raises:
        InputError: a label is no class of the model.
    """
    if settings.channels_last and inputs.ndim == 4:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    output = logits(model, inputs)
    check_labels(labels, output.shape[-1], "the training data")
    return cross_entropy(output, labels, label_smoothing=settings.label_smoothing)
