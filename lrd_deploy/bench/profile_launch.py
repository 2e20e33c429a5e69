"""One launch of a profile: every model with the engine's profiler and without, interleaved; the clock is given."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from lrd_deploy.bench.launch import Call, Clock, interleave
from lrd_deploy.bench.timing_overhead import timing_overhead_ns
from lrd_deploy.engines.backend import Arrays, Runtime, SessionSettings
from lrd_deploy.engines.profiler import Kernel, KernelTimes, ProfiledSession, Profiler
from lrd_deploy.errors import BackendError
from lrd_deploy.records import Record

Blocks = tuple[tuple[int, ...], ...]
_PROFILED = "profiled "
_LEAST_NS = 100


class ProfilePlan(Record):
    """What one launch does. `load_order` and `reverse_first` are what is counterbalanced between launches."""

    arms: dict[str, Path]
    load_order: tuple[str, ...]
    reverse_first: bool
    inputs: Path
    backend: str
    threads: int
    rounds: int
    arm_seconds: float


class ProfileSamples(Record):
    """Raw nanoseconds of whole calls by arm, round and call, and of kernels by arm, round, call and kernel.

    `whole_ns` is without the profiler, `profiled_ns` the whole of the calls that `kernel_ns` takes apart, as the engine
    wrote them. `overhead_ns`: what timing a kernel added to its time, see `timing_overhead_ns`.
    `waited`: another measurement had this machine, and the launch began when it was done.
    """

    load_order: tuple[str, ...]
    calls_per_block: int
    warmup_converged: bool
    whole_ns: dict[str, Blocks]
    profiled_ns: dict[str, Blocks]
    kernels: dict[str, tuple[Kernel, ...]]
    kernel_ns: dict[str, tuple[Blocks, ...]]
    overhead_ns: float
    waited: bool = False


def profile_launch(
    plan: ProfilePlan, inputs: Arrays, runtime: Runtime, profiler: Profiler, clock: Clock, folder: Path
) -> ProfileSamples:
    """Runs one launch.

    Args:
        plan: what to do.
        inputs: one batch, by input name.
        runtime: loads the models without its profiler.
        profiler: loads them with it; the same backend.
        clock: in nanoseconds.
        folder: for what the engine writes.

    Raises:
        BackendError: the backend refuses a model or its inputs, or has not kept every call's times.
    """
    settings = SessionSettings(threads=plan.threads)
    overhead_ns = timing_overhead_ns(runtime, profiler, settings, clock, folder)
    calls: dict[str, Call] = {}
    sessions: dict[str, ProfiledSession] = {}
    for number, arm in enumerate(plan.load_order):
        own = folder / str(number)
        own.mkdir()
        calls[arm] = runtime.load(plan.arms[arm], settings).bind(inputs)
        sessions[arm] = profiler.load_profiled(plan.arms[arm], settings, own)
        calls[_PROFILED + arm] = sessions[arm].bind(inputs)
    blocks, per_block, converged = interleave(
        calls, clock, rounds=plan.rounds, arm_seconds=plan.arm_seconds, reverse_first=plan.reverse_first
    )
    times = {arm: session.kernel_times() for arm, session in sessions.items()}
    rounds = len(blocks[plan.load_order[0]])
    return ProfileSamples(
        load_order=plan.load_order,
        calls_per_block=per_block,
        warmup_converged=converged,
        whole_ns={arm: blocks[arm] for arm in sessions},
        profiled_ns={arm: blocks[_PROFILED + arm] for arm in sessions},
        kernels={arm: found.kernels for arm, found in times.items()},
        kernel_ns={arm: _timed_blocks(found, rounds, per_block) for arm, found in times.items()},
        overhead_ns=overhead_ns,
    )


def _timed_blocks(times: KernelTimes, rounds: int, per_block: int) -> tuple[Blocks, ...]:
    """The calls of the blocks, which came last: one that is discarded goes before each."""
    length = per_block + 1
    if len(times.calls_ns) < rounds * length:
        raise BackendError(
            "timing the kernels of a model",
            found=f"times of {len(times.calls_ns)} calls",
            accepted=f"those of the last {rounds * length}",
            remedy="report this with the model: the engine's profiler lost some",
        )
    last = times.calls_ns[-rounds * length :]
    return tuple(last[start + 1 : start + length] for start in range(0, rounds * length, length))


def summed(blocks: tuple[Blocks, ...], kernels: Iterable[int], overhead_ns: float) -> Blocks:
    """Returns the time of some kernels together, by round and call, less what timing them added.

    Args:
        blocks: nanoseconds by round, call and kernel.
        kernels: their numbers.
        overhead_ns: of timing one kernel; no kernel counts for less than a tenth of a microsecond.
    """
    numbers = list(kernels)
    least, overhead = _LEAST_NS * len(numbers), round(overhead_ns * len(numbers))
    sums = (np.asarray(block)[:, numbers].sum(axis=1) for block in blocks)
    return tuple(tuple(max(int(total) - overhead, least) for total in block) for block in sums)
