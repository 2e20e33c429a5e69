"""One process or many: what accelerate gives the loop, and what the loop cannot work with."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, parse_flag_from_env
from torch import nn
from torch.utils.data import DataLoader

from lrd_deploy.errors import InputError, UsageError
from lrd_deploy.records import FrozenGroup

SHARDING = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM, DistributedType.XLA)


def make_accelerator(seed: int) -> Accelerator:
    """Returns an accelerator whose loaders give every process its part of one global batch, in an order of the seed.

    Raises:
        UsageError: it would not wrap models in DistributedDataParallel.
    """
    loading = DataLoaderConfiguration(split_batches=True, use_seedable_sampler=True, data_seed=seed)
    gradients = DistributedDataParallelKwargs(gradient_as_bucket_view=True)  # no second copy of them
    accelerator = Accelerator(
        dataloader_config=loading, kwargs_handlers=[gradients], cpu=not torch.accelerator.is_available()
    )
    if accelerator.distributed_type in SHARDING:
        raise UsageError(
            "starting training",
            found=f"accelerate's {accelerator.distributed_type.value}",
            accepted="one process, or several with DistributedDataParallel",
            remedy="it flattens or shards parameters, so that half of them cannot be frozen: launch with --multi_gpu",
        )
    return accelerator


def training_device() -> str:
    """Returns where one process trains here: the first GPU where there is one, unless accelerate was told otherwise."""
    gpu = torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
    return "cuda:0" if gpu else "cpu"


def shared_loader(accelerator: Accelerator, loader: Any) -> Any:
    """Returns the loader of this process' part of every batch.

    Raises:
        InputError: batches cannot be shared evenly, or not at all.
    """
    processes = accelerator.num_processes
    if processes > 1:
        size = loader.batch_size if isinstance(loader, DataLoader) else None
        if size is None or size % processes:
            raise InputError(
                f"sharing batches between {processes} processes",
                found="a loader that is no DataLoader with a batch size" if size is None else f"batches of {size}",
                accepted=f"a torch DataLoader whose batch size is a multiple of {processes}",
                remedy="the recipe's batch is the global one: change its size, or the number of processes",
            )
    return accelerator.prepare(loader)


class PhaseModels:
    """The model as each phase trains it: as it is, or compiled once per phase.

    What the compiler made for one phase is never run in another, where other parameters are frozen (pytorch issue
    139476).
    """

    def __init__(self, model: nn.Module, *, compiled: bool) -> None:
        self._model, self._compile = model, compiled
        self._compiled: dict[FrozenGroup, nn.Module] = {}

    def of(self, frozen: FrozenGroup) -> nn.Module:
        """Returns the model for a phase, whose factors are frozen already."""
        if not self._compile:
            return self._model
        if frozen not in self._compiled:
            self._compiled[frozen] = torch.compile(self._model)
        return self._compiled[frozen]


def wrapped_for_devices(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    """Returns the model inside DistributedDataParallel where there are several processes.

    To be called anew whenever another group freezes: the wrapper looks at `requires_grad` once, when it is made.
    """
    if accelerator.num_processes == 1:
        return model
    accelerator.free_memory()  # the wrapper of the phase before
    return accelerator.prepare_model(model)
