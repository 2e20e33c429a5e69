"""Baseline against candidate, measured so that the ratio can be believed."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
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
from lrd_deploy.bench.samples_file import MeasuredUnder, SamplesFile, read_samples
from lrd_deploy.bench.statistics import block_log_ratio, median, percentile_bound, ratio_with_interval
from lrd_deploy.bench.turns import Turns
from lrd_deploy.engines.execution_provider import check_device
from lrd_deploy.engines.inputs import save_arrays
from lrd_deploy.errors import BackendError, InputError, UsageError
from lrd_deploy.files import sha256_of
from lrd_deploy.observer import Observer, SilentObserver
from lrd_deploy.recipe.settings import Bench
from lrd_deploy.records import Comparison, Execution, Latency, Ratio

ARMS = ("base", "candidate", "control")
_CONTROL_LIMIT = 0.03
_WIDEST_INTERVAL = 1.25  # its upper end over its lower one
_ARM_SECONDS, _SOLO_SECONDS = 1.0, 0.4
_FEWEST_LAUNCHES = 2
_LAST_RESORT_SECONDS = 6 * 3600.0  # a worker that hangs ends itself long before: see `watchdog`
_ON_CPU = Execution()


def compare(
    base: Path,
    candidate: Path,
    inputs: Mapping[str, NDArray[np.generic]],
    settings: Bench,
    observer: Observer | None = None,
    keep: SamplesFile | None = None,
    notes: Sequence[str] = (),
) -> tuple[Comparison, tuple[LaunchSamples, ...]]:
    """Measures how much faster `candidate` is than `base`, on ONNX Runtime.

    Every launch is a fresh process that loads base, candidate and a second copy of base (the control), times them in
    interleaved blocks, then base and candidate alone. Load order and direction are counterbalanced over launches.

    Args:
        base: an ONNX file.
        candidate: an ONNX file with the same inputs.
        inputs: one batch, by input name.
        settings: launches, rounds, threads and device; the batch is that of `inputs`.
        observer: hears of every finished launch.
        keep: gets every launch as it ends, so that a later one that dies costs none of them.
        notes: warnings that belong to the comparison whatever is measured.

    Returns:
        The comparison, and every launch's raw samples.

    Raises:
        UsageError: there are more threads than cores.
        BackendError: the device is absent, or a worker failed, hung, or refused one of the models; the message says
            how many launches were finished, and where they are kept.
        StorageError: the samples cannot be kept.
    """
    observer = observer or SilentObserver()
    under = MeasuredUnder(
        base_sha256=sha256_of(base),
        candidate_sha256=sha256_of(candidate),
        batch=len(next(iter(inputs.values()))),
        threads=settings.threads,
        execution=settings.execution,
        environment=environment(),
        notes=tuple(notes),
    )
    if keep:
        keep.begin(under)
    launches: list[LaunchSamples] = []
    length = LaunchLength(rounds=settings.rounds, arm_seconds=_ARM_SECONDS, solo_seconds=_SOLO_SECONDS)
    found = fresh_launches(base, candidate, inputs, settings.threads, length, observer, settings.execution)
    with closing(found) as source:
        try:
            for samples in islice(source, settings.launches):
                launches.append(samples)
                if keep:
                    keep.add(samples)
                observer.progress("measuring inference", len(launches), settings.launches)
        except BackendError as exc:
            if not launches:
                raise
            raise _unfinished(exc, len(launches), settings.launches, keep) from exc
    return conclude(launches, under), tuple(launches)


def judge_samples(path: Path) -> Comparison:
    """Returns what the finished launches of a samples file say.

    Raises:
        StorageError: the file cannot be read.
        InputError: it is no samples file, or holds fewer than two launches, which give no interval.
    """
    under, launches = read_samples(path)
    if len(launches) < _FEWEST_LAUNCHES:
        raise InputError(
            f"judging the samples '{path}'",
            found=f"{len(launches)} finished launches",
            accepted=f"at least {_FEWEST_LAUNCHES}: an interval needs launches to differ",
            remedy="measure again",
        )
    return conclude(launches, under)


def _unfinished(exc: BackendError, done: int, wanted: int, keep: SamplesFile | None) -> BackendError:
    """The error of one launch, with what became of those before it."""
    kept = f"kept in '{keep.path}'" if keep else "lost"
    judge = f"; judge the finished ones with: lrd-deploy bench --judge {keep.path}" if keep else ""
    return BackendError(
        exc.doing,
        found=f"{exc.found}; {done} of {wanted} launches were finished and are {kept}",
        accepted=exc.accepted,
        remedy=exc.remedy + (judge if done >= _FEWEST_LAUNCHES else "" if keep else "; keep them with --samples FILE"),
    )


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
    execution: Execution = _ON_CPU,
) -> Generator[LaunchSamples]:
    """Yields launches without end, each measured when it is asked for.

    Base and candidate have been loaded in the same places after every two, the control after every six, and each place
    has been timed in both directions after every twelve.

    Launches of several measurements on one machine take turns.

    Raises:
        UsageError: there are more threads than cores.
        BackendError: the device is absent, or a worker failed, or refused one of the models.
    """
    check_threads(threads)
    check_device(execution)
    arms = dict(zip(ARMS, (base.resolve(), candidate.resolve(), base.resolve()), strict=True))
    with TemporaryDirectory(prefix="lrd-deploy-") as folder:
        stored = save_arrays(Path(folder, "inputs.npz"), inputs)
        turns = Turns(observer)
        for number in count():
            order, reverse = balanced_order(ARMS, number)
            plan = LaunchPlan(
                arms=arms,
                load_order=order,
                reverse_first=reverse,
                inputs=stored,
                backend="onnxruntime",
                threads=threads,
                execution=execution,
                **length._asdict(),
            )
            yield turns.take(partial(_launch, plan))


def _launch(plan: LaunchPlan) -> LaunchSamples:
    return run_worker(
        "lrd_deploy.bench.worker", plan, LaunchSamples, threads=plan.threads, timeout_seconds=_LAST_RESORT_SECONDS
    )


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


def conclude(launches: Sequence[LaunchSamples], under: MeasuredUnder) -> Comparison:
    """Returns what the samples say; pure, so that stored samples can be judged again."""
    speedups = [block_log_ratio(launch.blocks["base"], launch.blocks["candidate"]) for launch in launches]
    controls = [block_log_ratio(launch.blocks["base"], launch.blocks["control"]) for launch in launches]
    speedup, control = ratio_with_interval(speedups), ratio_with_interval(controls)
    return Comparison(
        base=_latency(launches, "base", under.batch),
        candidate=_latency(launches, "candidate", under.batch),
        speedup=speedup,
        control=control,
        backend="onnxruntime",
        batch=under.batch,
        threads=under.threads,
        execution=under.execution,
        per_launch_speedup=tuple(exp(value) for value in speedups),
        warnings=(*_warnings(launches, speedup, control), *under.notes),
        environment=under.environment,
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
        h2d_ms=_median_ms(launch.h2d_ns.get(arm, ()) for launch in launches),
        d2h_ms=_median_ms(launch.d2h_ns.get(arm, ()) for launch in launches),
    )


def _median_ms(samples: Iterable[Sequence[int]]) -> float | None:
    found = [nanoseconds / 1e6 for launch in samples for nanoseconds in launch]
    return median(found) if found else None


def _warnings(launches: Sequence[LaunchSamples], speedup: Ratio, control: Ratio) -> tuple[str, ...]:
    warnings = []
    if speedup.high / speedup.low > _WIDEST_INTERVAL:
        warnings.append(
            f"launches disagree, from {speedup.low:.2f} to {speedup.high:.2f}: "
            "measure again while nothing else runs, or with more launches"
        )
    if abs(control.estimate - 1) > _CONTROL_LIMIT:
        warnings.append(
            f"the control, base against itself, came out at {control.estimate:.3f}: "
            "the machine was too busy to trust a difference of that size"
        )
    unsettled = sum(not launch.warmup_converged for launch in launches)
    if unsettled:
        warnings.append(f"latency had not settled after 3 s of warm-up in {unsettled} of {len(launches)} launches")
    if len(launches) % 2:
        warnings.append(
            f"{len(launches)} launches are an odd number: the arms were not loaded in the same places equally often"
        )
    return (*warnings, *_gpu_warnings(launches))


def _gpu_warnings(launches: Sequence[LaunchSamples]) -> Iterator[str]:
    throttled = [launch.gpu.throttled for launch in launches if launch.gpu and launch.gpu.throttled]
    if throttled:
        reasons = ", ".join(sorted({reason for reasons in throttled for reason in reasons}))
        yield f"the GPU was throttled in {len(throttled)} of {len(launches)} launches: {reasons}"
    for arm in ("base", "candidate"):
        found = sorted({operator for launch in launches for operator in launch.on_cpu.get(arm, ())})
        if found:
            yield f"operators of {arm} ran on the CPU: {', '.join(found)}"
