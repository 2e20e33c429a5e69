"""The process of one launch: `python -m lrd_deploy.bench.worker PLAN.json SAMPLES.json`. Imports no PyTorch."""

from __future__ import annotations

import gc
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lrd_deploy.bench.launch import LaunchPlan, LaunchSamples, interleave, solo, warm_up
from lrd_deploy.engines import SessionSettings, runtime
from lrd_deploy.errors import LrdError


def measure(plan: LaunchPlan) -> LaunchSamples:
    """Runs one launch: loads every arm in order, interleaves them, then runs base and candidate alone if asked to."""
    backend = runtime(plan.backend)
    backend.describe()  # imports the runtime, so that the first arm's cold start does not
    with np.load(plan.inputs) as stored:
        inputs = dict(stored)
    quiet = SessionSettings(threads=plan.threads)
    calls, cold = {}, {}
    for name in plan.load_order:
        started = time.perf_counter_ns()
        calls[name] = backend.load(plan.arms[name], quiet).bind(inputs)
        cold[name] = time.perf_counter_ns() - started
    gc.disable()
    blocks, per_block, converged = interleave(
        calls,
        time.perf_counter_ns,
        rounds=plan.rounds,
        arm_seconds=plan.arm_seconds,
        reverse_first=plan.reverse_first,
    )
    calls.clear()
    return LaunchSamples(
        load_order=plan.load_order,
        calls_per_block=per_block,
        warmup_converged=converged,
        blocks=blocks,
        solo=_alone(plan, inputs) if plan.solo_seconds else {},
        cold_start_ns=cold,
    )


def _alone(plan: LaunchPlan, inputs: dict[str, NDArray[np.generic]]) -> dict[str, tuple[int, ...]]:
    """Base and candidate one after the other, with the threads' usual spinning."""
    deployed = SessionSettings(threads=plan.threads, spin_between_calls=True)
    samples = {}
    for name in (name for name in plan.load_order if name != "control"):
        call = runtime(plan.backend).load(plan.arms[name], deployed).bind(inputs)
        warm_up(call, time.perf_counter_ns)
        samples[name] = solo(call, time.perf_counter_ns, plan.solo_seconds)
    return samples


if __name__ == "__main__":
    try:
        measure(LaunchPlan.read(Path(sys.argv[1]))).write(Path(sys.argv[2]))
    except LrdError as exc:
        sys.exit(str(exc))
