"""Sequential freezing as a callback of transformers' Trainer."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import nn
from transformers import TrainerCallback, TrainerState, TrainingArguments

from lrd_deploy.errors import InputError
from lrd_deploy.recipe.settings import Freezing, NoFreezing, SequentialFreezing
from lrd_deploy.train.devices import SHARDING
from lrd_deploy.train.freezing import FreezingSchedule, freeze_, refuse_short_run


class FreezingCallback(TrainerCallback):
    """Freezes factors in turn while transformers' Trainer trains::

        Trainer(model, arguments, train_dataset=data, callbacks=[FreezingCallback()]).train()

    Epochs and optimizer steps are counted from the Trainer's state, so that a run resumed from a checkpoint goes on in
    its phase. After training every factor learns again.

    Several processes need `TrainingArguments(ddp_find_unused_parameters=True)`: no callback can wrap the model anew, so
    DistributedDataParallel must look in every step at which gradients there are. It still communicates as much as if
    nothing were frozen.

    Args:
        freezing: who stands still, and when; by default the groups change every epoch.
    """

    def __init__(self, freezing: Freezing | None = None) -> None:
        self.freezing = freezing or SequentialFreezing()
        self._schedule: FreezingSchedule | None = None
        self._epoch = -1

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        *_: Any,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        **__: Any,
    ) -> None:
        """Refuses what cannot be frozen in turn; nothing is frozen yet.

        Raises:
            InputError: the model or the optimizer cannot be used; the model is compiled, sharded or wrapped for good.
            UsageError: the run ends before the first period does.
        """
        if isinstance(self.freezing, SequentialFreezing):
            _refuse_compiled(args)
        if not isinstance(self.freezing, NoFreezing):
            _refuse_wrapped_for_good(args)
        refuse_short_run(self.freezing, epochs=state.num_train_epochs, steps=state.max_steps)
        self._schedule = FreezingSchedule(model, optimizer, self.freezing)
        self._epoch = int(state.epoch or 0) - 1

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        """Counts epochs here, because one that ends early leaves a share of itself in the Trainer's state."""
        self._epoch += 1

    def on_step_begin(self, _args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        """Enters the phase of the optimizer step that begins.

        Raises:
            InputError: the weights that stood still until now have moved.
        """
        self._schedule.begin(self._epoch, state.global_step)

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        """Checks the frozen weights.

        Raises:
            InputError: they have moved.
        """
        self._schedule.check()

    def on_train_end(self, *_: Any, model: nn.Module, **__: Any) -> None:
        """Lets everything learn again; unchecked, for the best checkpoint may have been loaded since the last epoch."""
        freeze_(model, "none")
        self._schedule = None


def _refuse_compiled(args: TrainingArguments) -> None:
    if args.torch_compile:
        raise InputError(
            "freezing factors in turn under transformers' Trainer",
            found="torch_compile, whose code for one phase may run in another (pytorch issue 139476)",
            accepted="a model that is not compiled",
            remedy="leave torch_compile out, or use RegularFreezing()",
        )


def _refuse_wrapped_for_good(args: TrainingArguments) -> None:
    kind = AcceleratorState().distributed_type
    if kind in SHARDING:
        raise InputError(
            "freezing factors in turn under transformers' Trainer",
            found=f"{kind.value}, which flattens or shards parameters, so that half of them cannot be frozen",
            accepted="one process, or several with DistributedDataParallel",
            remedy="launch with torchrun, without FSDP or DeepSpeed",
        )
    looks_each_step = args.ddp_find_unused_parameters is True and not getattr(args, "ddp_static_graph", None)
    if kind is not DistributedType.NO and not looks_each_step:
        raise InputError(
            "freezing factors in turn under transformers' Trainer",
            found="DistributedDataParallel, which looks at requires_grad once, and which no callback can renew",
            accepted="a wrapper that looks in every step at which gradients there are, or one process",
            remedy="set TrainingArguments(ddp_find_unused_parameters=True) and not ddp_static_graph",
        )
