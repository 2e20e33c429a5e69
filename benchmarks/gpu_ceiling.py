"""What the device can do at most: copies and matrix products, measured; and what a model's layers take at least."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch

from lrd_deploy.bench.launch import timed
from lrd_deploy.bench.statistics import median
from lrd_deploy.bench.torch_device import arithmetic, on_gpu, waiter
from lrd_deploy.models.layer import Layer
from lrd_deploy.ranks.cost import macs, output_size, parameters
from lrd_deploy.ranks.forms import ranks_of
from lrd_deploy.records import KeepDense, RankPlan

_WARMUPS, _CALLS, _IN_A_ROW = 3, 10, 5
_DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ELEMENT_BYTES = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2}


def measure_ceilings(device: str, *, small: bool) -> dict[str, Any]:
    """Returns bytes per second of a copy, read and written ones both counted, and FLOPs per second by precision.

    Matrices are square and random; several products are queued in a row, as within a model.
    """
    bytes_, width = (2**24, 256) if small else (2**32, 8192)
    copy_s = _copy_seconds(bytes_, device)
    precisions = _DTYPES if on_gpu(device) else {name: _DTYPES[name] for name in ("fp32", "bf16")}
    rates = {}
    for precision, dtype in precisions.items():
        a, b = (torch.randn(width, width, device=device).to(dtype) for _ in range(2))
        with arithmetic(tf32=precision == "tf32"):
            rates[precision] = 2 * width**3 / _seconds(lambda a=a, b=b: a @ b, device)
    return {
        "copied_bytes": bytes_,
        "bytes_per_s": 2 * bytes_ / copy_s,
        "matrix_width": width,
        "flops_per_s": rates,
    }


def _copy_seconds(bytes_: int, device: str) -> float:
    source = torch.randn(bytes_ // 4, device=device)
    target = torch.empty_like(source)
    return _seconds(lambda: target.copy_(source), device)


def _seconds(call: Callable[[], object], device: str) -> float:
    wait = waiter(device)

    def several() -> None:
        for _ in range(_IN_A_ROW):
            call()
        wait()

    timed(several, time.perf_counter_ns, _WARMUPS)
    return median(timed(several, time.perf_counter_ns, _CALLS)) / 1e9 / _IN_A_ROW


def floor_ms(
    layers: Sequence[Layer], plan: RankPlan | None, batch: int, precision: str, ceilings: dict[str, Any]
) -> float | None:
    """Returns the least time of one pass through the weighted layers alone, one after the other.

    A layer takes the longer of its products at the measured rate, and of its weights, its input, its output and what
    its factors hand on, moved at the measured bandwidth. What is between the layers is not counted, nor what stays in
    a cache. None where the rate of that precision was not measured.
    """
    choices = {layer.name: layer.choice for layer in plan.layers} if plan else {}
    rate, bandwidth = ceilings["flops_per_s"].get(precision), ceilings["bytes_per_s"]
    if rate is None:
        return None
    total = 0.0
    for layer in layers:
        if layer.signature is None:
            continue
        choice = choices.get(layer.name, KeepDense())
        inside = 2 * sum(ranks_of(choice)) * prod(output_size(layer.signature))  # written and read
        ends = layer.signature.in_channels * prod(layer.signature.spatial)
        ends += layer.signature.out_channels * prod(output_size(layer.signature))
        moved = (batch * (inside + ends) + parameters(layer.signature, choice)) * ELEMENT_BYTES[precision]
        work = 2 * batch * macs(layer.signature, choice)
        total += layer.calls * max(work / rate, moved / bandwidth)
    return total * 1e3
