"""One training loop for the dense model and for fine-tuning: accelerate underneath, resumable at every step."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate.utils import broadcast, set_seed
from torch import nn

from lrd_deploy.errors import TrainingDiverged
from lrd_deploy.models.data import Data, batches
from lrd_deploy.models.example import mapped
from lrd_deploy.observer import Observer, SilentObserver
from lrd_deploy.recipe.settings import FineTuning, NoFreezing, Progress, Training
from lrd_deploy.records import Epoch
from lrd_deploy.train.accuracy import accuracy
from lrd_deploy.train.checkpoint import Checkpoint, load_newest, save_checkpoint
from lrd_deploy.train.devices import PhaseModels, make_accelerator, shared_loader, wrapped_for_devices
from lrd_deploy.train.freezing import FreezingSchedule, refuse_short_run
from lrd_deploy.train.log import TrainingLog
from lrd_deploy.train.optimizer import learning_rate_at, make_optimizer
from lrd_deploy.train.step import Batch, TrainingStep


@dataclass(frozen=True)
class TrainingJob:
    """What to train, on what, how, and where its checkpoints go.

    `teacher` is the dense model to distil from, where the settings say so; `log` the file that gets a line per step,
    by default beside the checkpoints.
    """

    model: nn.Module
    data: Data
    settings: Training
    seed: int
    checkpoints: Path
    what: str
    teacher: nn.Module | None = None
    progress: Progress = field(default_factory=Progress)
    log: Path | None = None
    clock: Callable[[], float] = field(default=time.perf_counter)


def train(job: TrainingJob, observer: Observer | None = None) -> tuple[Epoch, ...]:
    """Trains `job.model` in place and returns one record per epoch, resumed ones included.

    Every step seeds its own random numbers, so that a run resumed from its last checkpoint ends with the very weights
    of a run that was never interrupted.

    Raises:
        TrainingDiverged: the loss is not finite; the last good checkpoint is kept.
        InputError: nothing can be frozen, or the checkpoint is of another model.
        UsageError: the run ends before its schedule of freezing has come round.
    """
    return _Run(job, observer or SilentObserver()).train()


class _Run:
    """A job under way."""

    def __init__(self, job: TrainingJob, observer: Observer) -> None:
        settings = job.settings
        self.job, self.observer = job, observer
        self.accelerator = make_accelerator(job.seed)
        layout = torch.channels_last if settings.channels_last else torch.contiguous_format
        self.model = job.model.to(self.accelerator.device).to(memory_format=layout)
        optimizer = make_optimizer(self.model, settings)
        teacher = None if job.teacher is None else job.teacher.to(self.accelerator.device)
        self.step = TrainingStep(self.model, optimizer, settings, teacher)
        freezing = settings.freezing if isinstance(settings, FineTuning) else NoFreezing()
        self.schedule = FreezingSchedule(self.model, optimizer, freezing)
        self.models = PhaseModels(self.model, compiled=settings.compile)
        self.loader = shared_loader(self.accelerator, job.data.train)
        self.steps = math.ceil(len(self.loader) / settings.gradient_accumulation)  # per epoch
        refuse_short_run(freezing, epochs=settings.epochs, steps=self.steps * settings.epochs)
        self.parts = {"optimizer": optimizer, "scaler": self.step.scaler}
        self.done = load_newest(job.checkpoints, self.model, self.parts)
        self.wrapped = self._wrapped()
        self.saved_at = job.clock()

    def train(self) -> tuple[Epoch, ...]:
        """The epochs that are left; returns all of them."""
        job, epochs = self.job, self.job.settings.epochs
        first = len(self.done.epochs) * self.steps + self.done.batches // job.settings.gradient_accumulation
        path = job.log or job.checkpoints / "training.jsonl"
        log = TrainingLog(path, self.accelerator, job.progress.trackers, first)
        try:
            for epoch in range(len(self.done.epochs), epochs):
                self._train_epoch(epoch, log)
        finally:
            log.close()
        self.schedule.finish()
        return self.done.epochs

    def _train_epoch(self, epoch: int, log: TrainingLog) -> None:
        """From where the checkpoint left it to its end."""
        job, settings, count = self.job, self.job.settings, self.job.settings.gradient_accumulation
        total, sums, done = self.steps * settings.epochs, _Sums.of(self.done), self.done.batches
        started = job.clock() - sums.seconds
        self.model.train()
        for parts in _grouped(self._batches(epoch, done), count):
            step = epoch * self.steps + done // count
            if self.schedule.begin(epoch, step):
                self.wrapped = self._wrapped()
            rate = learning_rate_at(step, total, settings)
            set_seed(_seed(job.seed, epoch, done, self.accelerator.process_index, _MODEL))
            loss, overdue = self._agreed(float(self.step.take(self.wrapped, parts, rate)))
            if not math.isfinite(loss):
                raise self._diverged(epoch, f"a loss of {loss}")
            done += len(parts)
            sums.add(loss, parts, self.schedule.frozen, job.clock() - started, self.accelerator.num_processes)
            log.step(step, self._told(epoch, loss, rate, sums))
            detail = f"loss {sums.mean_loss:.3f}, {sums.images_per_s:.0f} images/s, {_phase(self.schedule.frozen)}"
            what = f"{job.what}, epoch {epoch + 1} of {settings.epochs}"
            self.observer.progress(what, done, len(self.loader), detail)
            if overdue and done < len(self.loader):
                self._save(sums.checkpoint(self.done.epochs, done))
        self._end_epoch(epoch, sums, rate)

    def _end_epoch(self, epoch: int, sums: _Sums, rate: float) -> None:
        """The last step of an epoch has no loss after it that would tell of weights gone wrong."""
        if not all(torch.isfinite(parameter).all() for parameter in self.model.parameters()):
            raise self._diverged(epoch, "weights that are NaN or infinite")
        self.schedule.check()
        for buffer in self.model.buffers():
            broadcast(buffer)  # every process has seen other batches, and its BatchNorm other statistics
        record = Epoch(
            epoch=epoch + 1,
            frozen=dict(sums.frozen),
            loss=sums.mean_loss,
            accuracy=accuracy(self.model, self.job.data),
            learning_rate=rate,
            seconds=sums.seconds,
            images_per_s=sums.images_per_s,
        )
        self._save(Checkpoint(epochs=(*self.done.epochs, record)))

    def _agreed(self, loss: float) -> tuple[float, bool]:
        """The mean loss over all processes, and whether one of them has not saved for too long.

        All must do the same: one that stopped or saved alone would leave the others waiting.
        """
        overdue = self.job.clock() - self.saved_at > 60 * self.job.progress.checkpoint_minutes
        if self.accelerator.num_processes == 1:
            return loss, overdue
        told = torch.tensor([loss, float(overdue)], dtype=torch.float64, device=self.accelerator.device)
        loss, share = self.accelerator.reduce(told, "mean").tolist()
        return loss, share > 0

    def _save(self, checkpoint: Checkpoint) -> None:
        """Keeps the state in memory and, in the main process, on disk."""
        self.done = checkpoint
        if self.accelerator.is_main_process:
            save_checkpoint(self.job.checkpoints, self.model, self.parts, checkpoint)
        self.accelerator.wait_for_everyone()
        self.saved_at = self.job.clock()

    def _batches(self, epoch: int, skipped: int) -> Iterator[Batch]:
        """The epoch's batches on the device; the skipped ones are drawn too, so that the rest are what they were."""
        if hasattr(self.loader, "set_epoch"):
            self.loader.set_epoch(epoch)
        own = getattr(self.job.data.train, "generator", None)
        if own is not None:
            own.manual_seed(self.job.seed + epoch)
        set_seed(_seed(self.job.seed, epoch, 0, 0, _DATA))
        source = batches(self.loader)
        for number in range(len(self.loader)):
            set_seed(_seed(self.job.seed, epoch, number, 0, _DATA))
            inputs, labels = next(source)
            if number >= skipped:
                yield mapped(inputs, self._to_device), self._to_device(labels)

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.accelerator.device)

    def _wrapped(self) -> nn.Module:
        return wrapped_for_devices(self.accelerator, self.models.of(self.schedule.frozen))

    def _told(self, epoch: int, loss: float, rate: float, sums: _Sums) -> dict[str, float | int | str]:
        return {
            "epoch": epoch + 1,
            "loss": loss,
            "learning_rate": rate,
            "images_per_s": round(sums.images_per_s, 1),
            "frozen": self.schedule.frozen,
        }

    def _diverged(self, epoch: int, found: str) -> TrainingDiverged:
        folder = self.job.checkpoints
        kept = f"; the last good state is in '{folder}'" if any(folder.glob("epoch-*")) else ""
        return TrainingDiverged(
            f"{self.job.what}, epoch {epoch + 1}",
            found=found,
            accepted="a finite loss and finite weights",
            remedy=f"lower 'learning_rate' or set 'clip_norm'{kept}",
        )


@dataclass
class _Sums:
    """What an epoch adds up while it runs; steps by the group that was frozen in them."""

    loss: float
    images: int
    seconds: float
    frozen: Counter[str]

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> _Sums:
        """Starts where the checkpoint left off."""
        return cls(checkpoint.loss_sum, checkpoint.images, checkpoint.seconds, Counter(checkpoint.frozen))

    def add(self, loss: float, parts: list[Batch], frozen: str, seconds: float, processes: int) -> None:
        """Adds one step."""
        self.loss += loss
        self.images += processes * sum(len(labels) for _, labels in parts)
        self.frozen[frozen] += 1
        self.seconds = seconds

    def checkpoint(self, epochs: tuple[Epoch, ...], done: int) -> Checkpoint:
        """What to store in the middle of an epoch."""
        return Checkpoint(
            epochs=epochs,
            batches=done,
            loss_sum=self.loss,
            images=self.images,
            seconds=self.seconds,
            frozen=dict(self.frozen),
        )

    @property
    def mean_loss(self) -> float:
        """Per step."""
        return self.loss / max(self.frozen.total(), 1)

    @property
    def images_per_s(self) -> float:
        """Of all processes."""
        return self.images / self.seconds if self.seconds > 0 else 0.0


_DATA, _MODEL = 0, 1


def _seed(seed: int, epoch: int, batch: int, process: int, purpose: int) -> int:
    """A seed of its own for every purpose at every batch: dropout must not repeat, nor depend on what came before."""
    mixed = 0
    for part in (seed, epoch, batch, process, purpose):
        mixed = (mixed * 1_000_003 + part + 1) % (2**32 - 1)  # NumPy takes 32 bits
    return mixed


def _grouped(source: Iterator[Batch], count: int) -> Iterator[list[Batch]]:
    """Lists of `count` batches; the last may be shorter."""
    parts: list[Batch] = []
    for batch in source:
        parts.append(batch)
        if len(parts) == count:
            yield parts
            parts = []
    if parts:
        yield parts


def _phase(frozen: str) -> str:
    return "everything learns" if frozen == "none" else f"{frozen} frozen"
