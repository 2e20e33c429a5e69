"""PyTorch's work on a device: waited for, recorded as a CUDA graph, in which float32 arithmetic, in how much memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from lrd_deploy.errors import BackendError

_BEFORE_CAPTURE = 3  # calls that choose kernels and allocate, before a graph is recorded


def on_gpu(device: str) -> bool:
    """True for a GPU."""
    return device != "cpu"


def check_torch_device(device: str) -> None:
    """Raises `BackendError` where PyTorch cannot use the device here."""
    if on_gpu(device) and int(device.partition(":")[2]) >= torch.cuda.device_count():
        raise BackendError(
            f"running PyTorch on {device}",
            found=f"{torch.cuda.device_count()} GPUs that PyTorch {torch.__version__} can use",
            accepted="an NVIDIA GPU with its driver, and a PyTorch built with CUDA",
            remedy="install PyTorch for CUDA and look at nvidia-smi, or choose the device cpu",
        )


def waiter(device: str) -> Callable[[], None]:
    """Returns a call that ends when everything that was started on the device is done."""
    return (lambda: torch.cuda.synchronize(device)) if on_gpu(device) else (lambda: None)


@contextmanager
def arithmetic(*, tf32: bool) -> Iterator[None]:
    """Within the block, float32 matrix products on a GPU are TF32 or not; convolutions are TF32 in PyTorch anyway.

    The older of PyTorch's two settings is used, which the newer one follows: mixing them is an error there.
    """
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, tf32
    try:
        yield
    finally:
        matmul.allow_tf32 = before


class Capture:
    """Records calls as CUDA graphs that share their memory, since no result of one is read after it; see `__call__`."""

    def __init__(self, device: str) -> None:
        """On the CPU there is nothing to record, and calls stay as they are."""
        self.device = device
        if on_gpu(device):
            self._stream, self._pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def __call__(self, call: Callable[[], object]) -> Callable[[], object]:
        """Returns a call that replays one of `call`, and does not wait for the GPU.

        A single layer's kernels take less time than starting them does, which within a model happens ahead: replayed
        they take what they take there.

        Source: PyTorch, CUDA semantics, section CUDA Graphs: run on a side stream first, then record.
        """
        if not on_gpu(self.device):
            return call
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            for _ in range(_BEFORE_CAPTURE):
                call()
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            call()
        return graph.replay


def peak_bytes(call: Callable[[], object], device: str) -> int | None:
    """Returns how much more memory a call takes at its peak than before it; None on the CPU, which does not tell."""
    if not on_gpu(device):
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
