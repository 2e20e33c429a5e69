"""What timing a kernel adds to its time: measured on kernels that do next to nothing, and taken off all others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from lrd_deploy.bench.launch import Clock, timed
from lrd_deploy.bench.statistics import median
from lrd_deploy.engines.backend import Runtime, SessionSettings
from lrd_deploy.engines.profiler import Profiler

IDLE = "idle.onnx"
_KERNELS, _WARMUPS, _CALLS = 64, 50, 200


def timing_overhead_ns(
    runtime: Runtime, profiler: Profiler, settings: SessionSettings, clock: Clock, folder: Path
) -> float:
    """Returns how much longer a kernel seems to take than it takes, in nanoseconds; 0 where it cannot be told.

    An engine's profiler looks at shapes and memory between its two readings of the clock. A chain of kernels on single
    numbers shows what that costs: the time of one by the profiler, less its share of a whole call without the profiler.

    Limits: kernels with many inputs, or whose profiling code has left the caches, cost more.
    """
    own = folder / "idle"
    own.mkdir()
    path = own / IDLE
    onnx.save(_idle_graph(), path)
    inputs = {"x": np.zeros((1, 1), np.float32)}
    plain = runtime.load(path, settings).bind(inputs)
    session = profiler.load_profiled(path, settings, own)
    profiled = session.bind(inputs)
    for call in (plain, profiled):
        timed(call, clock, _WARMUPS)
    whole_ns = median(timed(plain, clock, _CALLS))
    timed(profiled, clock, _CALLS)
    times = session.kernel_times()
    per_kernel = [sum(call) / len(call) for call in times.calls_ns[-_CALLS:]]
    return max(median(per_kernel) - whole_ns / len(times.kernels), 0.0)


def _idle_graph() -> ModelProto:
    nodes = [
        helper.make_node("Mul" if number % 2 else "Add", [f"v{number}" if number else "x", "c"], [f"v{number + 1}"],
                         name=f"idle{number}")
        for number in range(_KERNELS)
    ]  # fmt: skip
    sides = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1]) for name in ("x", f"v{_KERNELS}")]
    constant = numpy_helper.from_array(np.ones((1, 1), np.float32), "c")
    graph = helper.make_graph(nodes, "idle", sides[:1], sides[1:], [constant])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
