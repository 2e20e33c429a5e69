"""Baseline against candidate, measured so that the ratio can be believed."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from itertools import count, islice
from math import exp
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lrd_deploy.bench.environment import environment
from lrd_deploy.bench.launch import LaunchPlan, LaunchSamples, balanced_order
from lrd_deploy.bench.process import run_worker
from lrd_deploy.bench.statistics import block_log_ratio, median, percentile_bound, ratio_with_interval
from lrd_deploy.bench.turns import own_turn
from lrd_deploy.engines.inputs import save_arrays
from lrd_deploy.errors import UsageError
from lrd_deploy.observer import Observer, SilentObserver
from lrd_deploy.recipe.settings import Bench
from lrd_deploy.records import Comparison, Environment, Latency, Ratio

ARMS = ("base", "candidate", "control")
_CONTROL_LIMIT = 0.03
_ARM_SECONDS, _SOLO_SECONDS = 1.0, 0.4


def compare(
    base: Path,
    candidate: Path,
    inputs: Mapping[str, NDArray[np.generic]],
    settings: Bench,
    observer: Observer | None = None,
) -> tuple[Comparison, tuple[LaunchSamples, ...]]:
    """Measures how much faster `candidate` is than `base`, on ONNX Runtime.

    Every launch is a fresh process that loads base, candidate and a second copy of base (the control), times them in
    interleaved blocks, then base and candidate alone. Load order and direction are counterbalanced over launches.

    Args:
        base: an ONNX file.
        candidate: an ONNX file with the same inputs.
        inputs: one batch, by input name.
        settings: launches, rounds and threads; the batch is that of `inputs`.
        observer: hears of every finished launch.

    Returns:
        The comparison, and every launch's raw samples.

    Raises:
        BackendError: a worker failed, or refused one of the models.
    """
    observer = observer or SilentObserver()
    launches = []
    length = LaunchLength(rounds=settings.rounds, arm_seconds=_ARM_SECONDS, solo_seconds=_SOLO_SECONDS)
    with closing(fresh_launches(base, candidate, inputs, settings.threads, length, observer)) as source:
        for samples in islice(source, settings.launches):
            launches.append(samples)
            observer.progress("measuring inference", len(launches), settings.launches)
    batch = len(next(iter(inputs.values())))
    return conclude(launches, batch, settings.threads, environment()), tuple(launches)


class LaunchLength(NamedTuple):
    """How long a launch measures: interleaved rounds, within so many seconds per arm, and seconds alone per arm."""

    rounds: int
    arm_seconds: float
    solo_seconds: float


def fresh_launches(
    base: Path,
    candidate: Path,
    inputs: Mapping[str, NDArray[np.generic]],
    threads: int,
    length: LaunchLength,
    observer: Observer,
) -> Generator[LaunchSamples]:
    """Yields launches without end, each measured when it is asked for; counterbalanced after every four.

    Launches of several measurements on one machine take turns.

    Raises:
        UsageError: there are more threads than cores.
        BackendError: a worker failed, or refused one of the models.
    """
    check_threads(threads)
    arms = dict(zip(ARMS, (base.resolve(), candidate.resolve(), base.resolve()), strict=True))
    with TemporaryDirectory(prefix="lrd-deploy-") as folder:
        stored = save_arrays(Path(folder, "inputs.npz"), inputs)
        told = False
        for number in count():
            order, reverse = balanced_order(ARMS, number)
            plan = LaunchPlan(
                arms=arms,
                load_order=order,
                reverse_first=reverse,
                inputs=stored,
                backend="onnxruntime",
                threads=threads,
                **length._asdict(),
            )
            samples = _in_turn(plan, observer, told=told)
            told = told or samples.waited
            yield samples


def _in_turn(plan: LaunchPlan, observer: Observer, *, told: bool) -> LaunchSamples:
    waited = False

    def on_wait() -> None:
        nonlocal waited
        waited = True
        if not told:
            observer.note("another measurement is running on this machine; launches take turns")

    with own_turn(on_wait):
        samples = run_worker("lrd_deploy.bench.worker", plan, LaunchSamples, threads=plan.threads)
    return samples.model_copy(update={"waited": waited})


def check_threads(threads: int) -> None:
    """Raises `UsageError` where there are more threads than cores."""
    cores = environment().cores
    if threads > cores:
        raise UsageError(
            "measuring inference",
            found=f"{threads} threads",
            accepted=f"at most {cores}, the cores that this process may use",
            remedy="measure with fewer threads, or on the machine that will serve",
        )


def conclude(launches: Sequence[LaunchSamples], batch: int, threads: int, measured_on: Environment) -> Comparison:
    """Returns what the samples say; pure, so that stored samples can be judged again."""
    speedups = [block_log_ratio(launch.blocks["base"], launch.blocks["candidate"]) for launch in launches]
    controls = [block_log_ratio(launch.blocks["base"], launch.blocks["control"]) for launch in launches]
    control = ratio_with_interval(controls)
    return Comparison(
        base=_latency(launches, "base", batch),
        candidate=_latency(launches, "candidate", batch),
        speedup=ratio_with_interval(speedups),
        control=control,
        backend="onnxruntime",
        batch=batch,
        threads=threads,
        per_launch_speedup=tuple(exp(value) for value in speedups),
        warnings=_warnings(launches, control),
        environment=measured_on,
    )


def _latency(launches: Sequence[LaunchSamples], arm: str, batch: int) -> Latency:
    samples = [nanoseconds / 1e6 for launch in launches for nanoseconds in launch.solo[arm]]
    return Latency(
        min_ms=min(samples),
        p50_ms=median(samples),
        p90_ms=percentile_bound(samples, 0.9),
        p99_ms=percentile_bound(samples, 0.99),
        cold_start_ms=median([launch.cold_start_ns[arm] / 1e6 for launch in launches]),
        throughput_per_s=batch / (median(samples) / 1e3),
        samples=len(samples),
    )


def _warnings(launches: Sequence[LaunchSamples], control: Ratio) -> tuple[str, ...]:
    warnings = []
    if abs(control.estimate - 1) > _CONTROL_LIMIT:
        warnings.append(
            f"the control, base against itself, came out at {control.estimate:.3f}: "
            "the machine was too busy to trust a difference of that size"
        )
    unsettled = sum(not launch.warmup_converged for launch in launches)
    if unsettled:
        warnings.append(f"latency had not settled after 3 s of warm-up in {unsettled} of {len(launches)} launches")
    return tuple(warnings)
