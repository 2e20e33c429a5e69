"""Single layers as forward passes in PyTorch: for models that PyTorch itself serves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from lrd_deploy.bench.torch_device import Capture, arithmetic, check_torch_device, waiter
from lrd_deploy.bench.torch_layer import layer_module, layer_tensor, layout_of, on_threads
from lrd_deploy.records import Choice, Execution, LayerSignature

Calls = dict[Choice, Callable[[], object]]
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


@dataclass(frozen=True)
class ForwardCalls:
    """Layers as PyTorch modules in inference mode; a call is one pass that ends when the device is done.

    Attributes:
        channels_last: the layout of convolutions.
        execution: the device, whether passes replay a CUDA graph, and whether float32 products are TF32.
        precision: of weights and inputs.
    """

    channels_last: bool = False
    execution: Execution = field(default_factory=Execution)
    precision: Literal["fp32", "fp16"] = "fp32"
    per_call: int = 1

    @property
    def name(self) -> str:
        """The backend, with what of a pass the other conditions of a latency do not say."""
        return "torch channels_last" if self.channels_last else "torch"

    @contextmanager
    def calls(self, signature: LayerSignature, choices: Sequence[Choice], batch: int, threads: int) -> Iterator[Calls]:
        """Yields one call per choice; PyTorch's number of threads and its arithmetic are set meanwhile."""
        device, dtype = self.execution.device, _DTYPES[self.precision]
        check_torch_device(device)
        layout = layout_of(signature, channels_last=self.channels_last)
        with on_threads(threads), arithmetic(tf32=self.execution.tf32):
            x = layer_tensor(signature, batch, device, dtype).contiguous(memory_format=layout)
            modules = {choice: layer_module(signature, choice).to(device, dtype) for choice in choices}
            capture = Capture(device)
            yield {
                choice: forward_call(module.to(memory_format=layout), x, self.execution, capture)
                for choice, module in modules.items()
            }


def forward_call(module: nn.Module, x: Tensor, execution: Execution, capture: Capture) -> Callable[[], object]:
    """Returns a call that runs a module on `x`, by a CUDA graph where the execution says so, and waits for it."""
    module.eval()

    @torch.inference_mode()
    def run() -> None:
        module(x)

    step = capture(run) if execution.cuda_graph else run
    wait = waiter(execution.device)

    def call() -> None:
        step()
        wait()

    return call
