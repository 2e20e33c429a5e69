"""Why a model is not as much faster as its arithmetic allows: which kernels its time goes to."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from lrd_deploy.bench.torch_device import on_gpu, waiter

_CALLS, _TOP = 3, 8
# The first that a kernel's name matches; on the CPU names are of PyTorch's operators.
_KINDS = {
    "memory": r"bn_|batch_?norm|layer_?norm|elementwise|reduce|softmax|copy|memset|memcpy|cat|multi_tensor|adam|"
    r"dropout|gelu|relu|pool|nchwto|nhwcto|transpose|triton_(poi|red|per)|add_|mul_|embedding|index|fill|zero_",
    "matrix": r"gemm|nvjet|cutlass|xmma|conv|wgrad|dgrad|fprop|sm\d\d_|cudnn|mm\b|flash|fmha|attention|mkldnn",
}


def profile_summary(call: Callable[[], object], device: str) -> dict[str, Any]:
    """Returns which kernels take the time of a call, by PyTorch's profiler; one that waits for the device.

    `busy` is the share of the wall clock in which kernels ran, the profiler's own cost included: what is missing are
    gaps, in which the GPU waited for launches. `matrix` and `memory` are shares of the kernels' time: products, and
    kernels that only move or combine values. Empty where nothing was recorded.
    """
    wait = waiter(device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu(device) else [])]
    call()
    wait()
    with profile(activities=activities) as recorded:
        started = time.perf_counter_ns()
        for _ in range(_CALLS):
            call()
        wait()
        wall_us = (time.perf_counter_ns() - started) / 1e3
    return summarised(recorded.key_averages(), device, wall_us)


def summarised(events: Iterable[Any], device: str, wall_us: float) -> dict[str, Any]:
    """Returns the summary of a profiler's averages over all calls: on a GPU of its kernels, not of marked regions."""
    spent: Counter[str] = Counter()
    for event in events:
        if not on_gpu(device):
            spent[event.key] += event.self_cpu_time_total
        elif event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False):
            spent[event.key] += event.self_device_time_total
    return _summary(spent, wall_us)


def _summary(spent: Counter[str], wall_us: float) -> dict[str, Any]:
    total = sum(spent.values())
    if not total:
        return {}
    kinds: Counter[str] = Counter()
    for name, microseconds in spent.items():
        kinds[kind_of(name)] += microseconds
    return {
        "busy": total / wall_us,
        "kernels": len(spent),
        **{kind: kinds[kind] / total for kind in (*_KINDS, "other")},
        "top": [{"name": name[:100], "share": part / total} for name, part in spent.most_common(_TOP)],
    }


def kind_of(kernel: str) -> str:
    """Returns what a kernel's time depends on, by its name."""
    return next((kind for kind, names in _KINDS.items() if re.search(names, kernel.lower())), "other")
