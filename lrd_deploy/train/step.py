"""One training step: loss, backward, clipping, optimizer, decay of the products."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from lrd_deploy.models.example import Example, mapped
from lrd_deploy.models.fit import check_labels
from lrd_deploy.models.source import logits
from lrd_deploy.recipe.settings import Distillation, FineTuning, Training
from lrd_deploy.train.optimizer import decay_products_, set_learning_rate_

_DTYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}

Batch = tuple[Example, Tensor]  # inputs, labels


@dataclass
class TrainingStep:
    """Takes optimizer steps of one model; what wraps the model may change from call to call.

    Attributes:
        model: holds the parameters.
        optimizer: of `make_optimizer`.
        settings: what a step does.
        teacher: the dense model, where the settings distil from it.
        scaler: keeps FP16 gradients from vanishing; does nothing in other precisions.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    settings: Training
    teacher: nn.Module | None = None
    scaler: torch.amp.GradScaler = field(init=False)

    def __post_init__(self) -> None:
        """Makes the scaler, and stills the teacher."""
        device = next(self.model.parameters()).device.type
        self.scaler = torch.amp.GradScaler(device, enabled=self.settings.mixed_precision == "fp16")
        if self.teacher is not None:
            self.teacher.eval().requires_grad_(False)

    def take(self, wrapped: nn.Module, parts: Sequence[Batch], rate: float) -> Tensor:
        """Returns the mean loss over `parts`, whose gradients are accumulated for one step of the optimizer.

        Args:
            wrapped: the model, or it inside a compiler's or a distributed wrapper.
            parts: one batch, or several that count as one.
            rate: the learning rate.
        """
        set_learning_rate_(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)
        samples = sum(len(labels) for _, labels in parts)
        total = torch.zeros((), device=parts[0][1].device, dtype=torch.float64)
        for number, (inputs, labels) in enumerate(parts):
            with _no_reduction(wrapped) if number + 1 < len(parts) else nullcontext():
                loss = self._loss(wrapped, inputs, labels) * (len(labels) / samples)
                self.scaler.scale(loss).backward()
            total += loss.detach()
        if self.settings.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if isinstance(self.settings, FineTuning) and self.settings.factor_decay == "product":
            decay_products_(self.model, self.settings, rate)
        return total

    def _loss(self, wrapped: nn.Module, inputs: Example, labels: Tensor) -> Tensor:
        settings, dtype = self.settings, _DTYPES[self.settings.mixed_precision]
        if settings.channels_last:
            inputs = mapped(inputs, _channels_last)
        with torch.autocast(labels.device.type, dtype, enabled=dtype is not None):
            output = logits(wrapped, inputs)
            taught = None if self.teacher is None else self._taught(inputs)
        return training_loss(_at_least_float32(output), labels, settings, taught)

    @torch.no_grad()
    def _taught(self, inputs: Example) -> Tensor:
        return _at_least_float32(logits(self.teacher, inputs))


def training_loss(output: Tensor, labels: Tensor, settings: Training, taught: Tensor | None = None) -> Tensor:
    """Returns the mean cross-entropy of one batch, mixed with the teacher's part where there is one.

    Args:
        output: logits, (batch, classes).
        labels: (batch,).
        settings: smoothing, and how to mix.
        taught: the teacher's logits, (batch, classes).

    Raises:
        InputError: a label is no class of the model.
    """
    check_labels(labels, output.shape[-1], "the training data")
    hard = cross_entropy(output, labels, label_smoothing=settings.label_smoothing)
    distillation: Distillation | None = getattr(settings, "distillation", None)
    if taught is None or distillation is None:
        return hard
    warm = distillation.temperature
    soft = kl_div(
        log_softmax(output / warm, -1), log_softmax(taught / warm, -1), reduction="batchmean", log_target=True
    )
    return (1 - distillation.weight) * hard + distillation.weight * warm**2 * soft


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _at_least_float32(output: Tensor) -> Tensor:
    return output.to(torch.promote_types(output.dtype, torch.float32))


def _no_reduction(wrapped: nn.Module) -> AbstractContextManager[None]:
    """Gradients that are still accumulating need not travel."""
    return wrapped.no_sync() if hasattr(wrapped, "no_sync") else nullcontext()
