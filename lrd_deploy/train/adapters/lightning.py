"""Sequential freezing as a callback of Lightning's Trainer, under either of its names."""

from __future__ import annotations

import gc
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lrd_deploy.errors import InputError, MissingPackage
from lrd_deploy.recipe.settings import Freezing, NoFreezing, SequentialFreezing
from lrd_deploy.train.freezing import FreezingSchedule, freeze_, refuse_short_run

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback
    except ImportError as exc:
        raise MissingPackage("lightning", extra="lightning", purpose="importing the callback for Lightning") from exc


class FreezingCallback(Callback):
    """Freezes factors in turn while Lightning's Trainer trains::

        Trainer(max_epochs=10, callbacks=[FreezingCallback()]).fit(module)

    The factors may lie anywhere in the LightningModule. Epochs and optimizer steps are the Trainer's `current_epoch`
    and `global_step`, so that a run resumed with `ckpt_path` goes on in its phase. After training every factor learns
    again.

    With DistributedDataParallel the model is wrapped anew whenever another group freezes, so that the gradients of
    frozen factors are not communicated.

    Args:
        freezing: who stands still, and when; by default the groups change every epoch.
    """

    def __init__(self, freezing: Freezing | None = None) -> None:
        self.freezing = freezing or SequentialFreezing()
        self._schedule: FreezingSchedule | None = None

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Refuses what cannot be frozen in turn; nothing is frozen yet.

        Raises:
            InputError: the model or the optimizer cannot be used, or the model is compiled or sharded.
            UsageError: the run ends before the first period does.
        """
        if isinstance(self.freezing, SequentialFreezing):
            _refuse_compiled(pl_module)
        if not isinstance(self.freezing, NoFreezing):
            _refuse_sharded(trainer)
        _refuse_several(trainer.optimizers)
        epochs, steps = _bounded(trainer.max_epochs), _bounded(trainer.estimated_stepping_batches)
        refuse_short_run(self.freezing, epochs=epochs, steps=steps)
        self._schedule = FreezingSchedule(pl_module, trainer.optimizers[0], self.freezing)

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        """Enters the phase of the optimizer step that the batch belongs to.

        Raises:
            InputError: the weights that stood still until now have moved.
        """
        if self._schedule.begin(trainer.current_epoch, trainer.global_step):
            _wrap_anew(trainer.strategy)

    def on_train_epoch_end(self, *_: Any) -> None:
        """Checks the frozen weights.

        Raises:
            InputError: they have moved.
        """
        self._schedule.check()

    def on_train_end(self, _trainer: Any, pl_module: nn.Module) -> None:
        """Lets everything learn again."""
        freeze_(pl_module, "none")
        self._schedule = None

    def on_exception(self, trainer: Any, pl_module: nn.Module, *_: Any) -> None:
        """Lets everything learn again, so that an optimizer made for a second attempt holds every factor."""
        if self._schedule is not None:
            self.on_train_end(trainer, pl_module)


def _bounded(length: float | None) -> float:
    """Lightning says None or -1 where nothing bounds a run."""
    return float("inf") if length in (None, -1) else length


def _wrap_anew(strategy: Any) -> None:
    """Makes the wrapper again, for it looks at `requires_grad` once."""
    if isinstance(strategy.model, DistributedDataParallel):
        strategy.model = strategy.lightning_module
        gc.collect()  # the old wrapper would go on reducing gradients
        strategy.configure_ddp()


def _refuse_compiled(module: nn.Module) -> None:
    if getattr(module, "_compiler_ctx", None) is not None:
        raise InputError(
            "freezing factors in turn under Lightning",
            found="a compiled module, whose code for one phase may run in another (pytorch issue 139476)",
            accepted="a module that is not compiled",
            remedy="give fit() the module itself, or use RegularFreezing()",
        )


def _refuse_sharded(trainer: Any) -> None:
    plain = trainer.world_size == 1 and trainer.strategy.model is trainer.lightning_module
    if not plain and not isinstance(trainer.strategy.model, DistributedDataParallel):
        raise InputError(
            "freezing factors in turn under Lightning",
            found=f"{type(trainer.strategy).__name__}, which may flatten or shard parameters",
            accepted="one process, or several with DistributedDataParallel",
            remedy="use Trainer(strategy='ddp')",
        )


def _refuse_several(optimizers: list[Any]) -> None:
    if len(optimizers) != 1:
        raise InputError(
            "freezing factors in turn under Lightning",
            found=f"{len(optimizers)} optimizers, each of which counts in global_step",
            accepted="one optimizer, which holds every factor",
            remedy="return one from configure_optimizers, with parameter groups where they should differ",
        )
