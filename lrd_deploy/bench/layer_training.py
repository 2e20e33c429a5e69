"""Single layers as training steps in PyTorch: forward, and backward with one group of factors frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrd_deploy.decompose.layers import FactorisedLayer
from lrd_deploy.decompose.surgery import form_of
from lrd_deploy.recipe.settings import Freezing
from lrd_deploy.records import Choice, Execution, KeepDense, LayerSignature
from lrd_deploy.train.freezing import freeze_, phases

Calls = dict[Choice, Callable[[], object]]


@dataclass(frozen=True)
class TrainingCalls:
    """Layers as PyTorch modules on this machine's CPU or GPU; a call is one step of every phase of the schedule.

    A step computes the gradient of the layer's input and of the weights that are not frozen; the optimizer is left out.
    """

    freezing: Freezing
    channels_last: bool = False
    device: str = "cpu"
    name: str = "torch"

    @property
    def per_call(self) -> int:
        """Training steps in one call."""
        return len(phases(self.freezing))

    @property
    def execution(self) -> Execution:
        """Where the steps run."""
        return Execution(device=self.device)

    @contextmanager
    def calls(self, signature: LayerSignature, choices: Sequence[Choice], batch: int, threads: int) -> Iterator[Calls]:
        """Yields one call per choice; PyTorch's number of threads is set meanwhile."""
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            yield {choice: self._call(signature, choice, batch) for choice in choices}
        finally:
            torch.set_num_threads(before)

    def _call(self, signature: LayerSignature, choice: Choice, batch: int) -> Callable[[], object]:
        layout = torch.channels_last if self.channels_last and signature.kind == "conv2d" else torch.contiguous_format
        layer = _module(signature, choice).to(self.device, memory_format=layout)
        shape = (signature.in_channels, *signature.spatial)
        if signature.kind == "linear":
            shape = (*signature.spatial, signature.in_channels)
        x = torch.randn(batch, *shape, device=self.device).contiguous(memory_format=layout).requires_grad_()
        gradient = torch.randn_like(layer(x))

        def steps() -> None:
            for group in phases(self.freezing):
                freeze_(layer, group)
                _step(layer, x, gradient)
            if self.device != "cpu":
                torch.cuda.synchronize()

        return steps


def _step(layer: nn.Module, x: Tensor, gradient: Tensor) -> None:
    layer.zero_grad(set_to_none=True)
    x.grad = None
    layer(x).backward(gradient)


def _module(signature: LayerSignature, choice: Choice) -> nn.Module | FactorisedLayer:
    s = signature
    if s.kind == "linear":
        dense = nn.Linear(s.in_channels, s.out_channels)
    else:
        dense = nn.Conv2d(
            s.in_channels, s.out_channels, s.kernel, s.stride, s.padding, dilation=s.dilation, groups=s.groups
        )
    return dense if isinstance(choice, KeepDense) else form_of(dense, choice)(dense, choice)
