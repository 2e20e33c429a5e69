"""The process of one launch: `python -m lrd_deploy.bench.worker PLAN.json SAMPLES.json`. Imports no PyTorch."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lrd_deploy.bench.gpu import GpuWatch
from lrd_deploy.bench.launch import Call, LaunchPlan, LaunchSamples, interleave, solo, timed, warm_up
from lrd_deploy.bench.watchdog import cancel, expect_within, loading_seconds, step_seconds
from lrd_deploy.engines import Session, SessionSettings, runtime
from lrd_deploy.errors import InputError, LrdError

Batch = dict[str, NDArray[np.generic]]
_COPIES = 20


def measure(plan: LaunchPlan) -> LaunchSamples:
    """Runs one launch: loads every arm in order, interleaves them, then runs base and candidate alone if asked to.

    A process that makes no progress for far longer than a step takes is ended: see `watchdog`.

    Raises:
        InputError: an arm's outputs are not finite.
        BackendError: the engine refuses an arm.
    """
    runtime(plan.backend).describe()  # imports the runtime, so that the first arm's cold start does not
    with np.load(plan.inputs) as stored:
        inputs = dict(stored)
    try:
        return _measured(plan, inputs)
    finally:
        cancel()


def _measured(plan: LaunchPlan, inputs: Batch) -> LaunchSamples:
    sessions, calls, cold = _loaded(plan, inputs)
    patience = step_seconds(max(_first_call_seconds(sessions[name], inputs, name, plan) for name in sessions))
    expect_within(patience)
    watch = GpuWatch(plan.execution.gpu)

    def after_round() -> None:
        expect_within(patience)
        watch.read()

    gc.disable()
    blocks, per_block, converged = interleave(
        calls,
        time.perf_counter_ns,
        rounds=plan.rounds,
        arm_seconds=plan.arm_seconds,
        reverse_first=plan.reverse_first,
        after_round=after_round,
    )
    copies = _copied(plan, sessions, inputs)
    on_cpu = {name: session.on_cpu() for name, session in sessions.items() if plan.execution.gpu is not None}
    calls.clear()
    sessions.clear()
    return LaunchSamples(
        load_order=plan.load_order,
        calls_per_block=per_block,
        warmup_converged=converged,
        blocks=blocks,
        solo=_alone(plan, inputs, patience) if plan.solo_seconds else {},
        cold_start_ns=cold,
        h2d_ns={name: to_device for name, (to_device, _) in copies.items()},
        d2h_ns={name: to_host for name, (_, to_host) in copies.items()},
        on_cpu={name: operators for name, operators in on_cpu.items() if operators},
        gpu=watch.readings(),
    )


def _loaded(plan: LaunchPlan, inputs: Batch) -> tuple[dict[str, Session], dict[str, Call], dict[str, int]]:
    settings = SessionSettings(threads=plan.threads, execution=plan.execution)
    sessions, calls, cold = {}, {}, {}
    for name in plan.load_order:
        expect_within(loading_seconds(plan.arms[name]))
        started = time.perf_counter_ns()
        sessions[name] = runtime(plan.backend).load(plan.arms[name], settings)
        calls[name] = sessions[name].bind(inputs)
        cold[name] = time.perf_counter_ns() - started
    return sessions, calls, cold


def _first_call_seconds(session: Session, inputs: Batch, name: str, plan: LaunchPlan) -> float:
    """How long one call takes, roughly; its outputs are looked at, since a model of NaN has no speed worth knowing."""
    started = time.perf_counter()
    outputs = session.run(inputs)
    seconds = time.perf_counter() - started
    check_finite(outputs, f"'{plan.arms[name]}'")
    return seconds


def check_finite(outputs: Mapping[str, NDArray[np.generic]], model: str) -> None:
    """Raises `InputError` where a model's outputs hold NaN or infinity."""
    broken = [name for name, output in outputs.items() if output.dtype.kind == "f" and not np.isfinite(output).all()]
    if broken:
        raise InputError(
            f"running {model} before timing it",
            found=f"NaN or infinity in its output '{broken[0]}'",
            accepted="finite outputs: no speedup counts for a model that computes none",
            remedy="pass real inputs with --inputs; if it is so on them too, look for overflow or broken weights",
        )


def _copied(
    plan: LaunchPlan, sessions: Mapping[str, Session], inputs: Batch
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Copies to the GPU and from it, which IO binding keeps out of the timed calls."""
    if plan.execution.gpu is None or not plan.execution.io_binding:
        return {}
    copies = {name: session.copies(inputs) for name, session in sessions.items()}
    clock = time.perf_counter_ns
    return {
        name: (timed(to_device, clock, _COPIES), timed(to_host, clock, _COPIES))
        for name, (to_device, to_host) in copies.items()
    }


def _alone(plan: LaunchPlan, inputs: Batch, patience: float) -> dict[str, tuple[int, ...]]:
    """Base and candidate one after the other, with the threads' usual spinning."""
    deployed = SessionSettings(threads=plan.threads, spin_between_calls=True, execution=plan.execution)
    samples = {}
    for name in (name for name in plan.load_order if name != "control"):
        expect_within(loading_seconds(plan.arms[name]))
        call = runtime(plan.backend).load(plan.arms[name], deployed).bind(inputs)
        expect_within(patience)
        warm_up(call, time.perf_counter_ns)
        expect_within(patience + plan.solo_seconds)
        samples[name] = solo(call, time.perf_counter_ns, plan.solo_seconds)
    return samples


if __name__ == "__main__":
    try:
        measure(LaunchPlan.read(Path(sys.argv[1]))).write(Path(sys.argv[2]))
    except LrdError as exc:
        sys.exit(str(exc))
