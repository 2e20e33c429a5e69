"""Single layers as training steps in PyTorch: forward, and backward with one group of factors frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from lrd_deploy.bench.torch_device import Capture, arithmetic, check_torch_device, waiter
from lrd_deploy.bench.torch_layer import layer_module, layer_tensor, layout_of, on_threads
from lrd_deploy.recipe.settings import Freezing, NoFreezing
from lrd_deploy.records import Choice, Execution, LayerSignature
from lrd_deploy.train.freezing import freeze_, phases

Calls = dict[Choice, Callable[[], object]]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class TrainingCalls:
    """Layers as PyTorch modules on this machine's CPU or GPU; a call is one step of every phase of the schedule.

    A step computes the gradient of the layer's input and of the weights that are not frozen; the optimizer is left out.
    On a GPU its kernels are replayed from a CUDA graph, so that launching them, which a model's step does ahead, is not
    in the time.

    Attributes:
        freezing: whose phases are stepped through.
        channels_last: the layout of convolutions.
        execution: the device, and whether float32 products there are TF32.
        precision: of the products; in bf16 and fp16 by autocast, with inputs and gradients of that type.
    """

    freezing: Freezing
    channels_last: bool = False
    execution: Execution = field(default_factory=Execution)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"

    @property
    def name(self) -> str:
        """The backend, with what of a step the other conditions of a latency do not say."""
        words = [] if isinstance(self.freezing, NoFreezing) else [self.freezing.schedule]
        return " ".join(("torch", *words, *(["channels_last"] * self.channels_last)))

    @property
    def per_call(self) -> int:
        """Training steps in one call."""
        return len(phases(self.freezing))

    @contextmanager
    def calls(self, signature: LayerSignature, choices: Sequence[Choice], batch: int, threads: int) -> Iterator[Calls]:
        """Yields one call per choice; PyTorch's number of threads and its arithmetic are set meanwhile."""
        device, dtype = self.execution.device, _DTYPES[self.precision]
        check_torch_device(device)
        layout = layout_of(signature, channels_last=self.channels_last)
        with on_threads(threads), arithmetic(tf32=self.execution.tf32):
            x = layer_tensor(signature, batch, device, dtype).contiguous(memory_format=layout).requires_grad_()
            layers = {choice: layer_module(signature, choice).to(device, memory_format=layout) for choice in choices}
            with torch.no_grad():
                gradient = torch.randn_like(self._output(layers[choices[0]], x))
            capture = Capture(device)
            yield {choice: self._call(layer, x, gradient, capture) for choice, layer in layers.items()}

    def _call(self, layer: nn.Module, x: Tensor, gradient: Tensor, capture: Capture) -> Callable[[], object]:
        steps = []
        for group in phases(self.freezing):
            freeze_(layer, group)
            learning = [x, *(parameter for parameter in layer.parameters() if parameter.requires_grad)]
            steps.append((group, capture(partial(self._step, layer, x, gradient, learning))))
        wait = waiter(self.execution.device)

        def call() -> None:
            for group, step in steps:
                freeze_(layer, group)
                step()
            wait()

        return call

    def _step(self, layer: nn.Module, x: Tensor, gradient: Tensor, learning: Sequence[Tensor]) -> None:
        torch.autograd.grad(self._output(layer, x), learning, gradient)

    def _output(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Weights are cast anew in every call, as in every step of a model; a cast in a graph must not outlive it."""
        kind, lower = torch.device(self.execution.device).type, self.precision != "fp32"
        with torch.autocast(kind, _DTYPES[self.precision] if lower else None, enabled=lower, cache_enabled=False):
            return layer(x)
