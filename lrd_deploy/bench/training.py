"""How much faster fine-tuning steps are than dense ones: same batches, interleaved, in fresh processes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import exp, log
from pathlib import Path

from lrd_deploy.bench.environment import environment
from lrd_deploy.bench.process import run_worker
from lrd_deploy.bench.statistics import median, ratio_with_interval
from lrd_deploy.bench.turns import Turns
from lrd_deploy.observer import Observer, SilentObserver
from lrd_deploy.recipe import Recipe
from lrd_deploy.recipe.settings import FineTuning, SequentialFreezing
from lrd_deploy.records import FrozenGroup, RankPlan, Record, TrainingSpeedup
from lrd_deploy.train.freezing import frozen_group, phases


class TrainingLaunchPlan(Record):
    """What one launch does: both models are built from these files and trained on the first training batches."""

    recipe: Recipe
    recipe_folder: Path | None
    plan: RankPlan
    dense_weights: Path
    lowrank_weights: Path
    dense_first: bool
    threads: int
    device: str = "cpu"


class TrainingLaunchSamples(Record):
    """Milliseconds per step, the least of each block, by round: of the dense model and of each phase.

    `waited`: another measurement had this machine, and the launch began when it was done.
    """

    batch: int
    dense_ms: tuple[float, ...]
    lowrank_ms: dict[FrozenGroup, tuple[float, ...]]
    waited: bool = False


def compare_training(plan: TrainingLaunchPlan, launches: int, observer: Observer | None = None) -> TrainingSpeedup:
    """Measures the ratio of step times, dense over low-rank, averaged over the epochs of the freezing schedule.

    The clock covers forward, backward and optimizer; not data loading, which both arms share.

    Launches of several measurements on one machine take turns.

    Raises:
        BackendError: a worker failed.
    """
    observer = observer or SilentObserver()
    samples, turns = [], Turns(observer)
    for number in range(launches):
        launch = plan.model_copy(update={"dense_first": number % 2 == 0})
        samples.append(turns.take(partial(_launch, launch)))
        observer.progress("measuring training", number + 1, launches)
    shares = phase_shares(plan.recipe.fine_tune)
    ratios = [_log_ratio(launch, shares) for launch in samples]
    phases = samples[0].lowrank_ms
    return TrainingSpeedup(
        speedup=ratio_with_interval(ratios),
        dense_step_ms=median([ms for launch in samples for ms in launch.dense_ms]),
        lowrank_step_ms={
            phase: median([ms for launch in samples for ms in launch.lowrank_ms[phase]]) for phase in phases
        },
        batch=samples[0].batch,
        threads=plan.threads,
        device=plan.device,
        per_launch_speedup=tuple(exp(value) for value in ratios),
        environment=environment(),
    )


def _launch(plan: TrainingLaunchPlan) -> TrainingLaunchSamples:
    return run_worker("lrd_deploy.bench.training_worker", plan, TrainingLaunchSamples, threads=plan.threads)


def phase_shares(settings: FineTuning) -> dict[FrozenGroup, float]:
    """Returns the share of the epochs that each phase of the freezing schedule gets."""
    freezing = settings.freezing
    if isinstance(freezing, SequentialFreezing) and freezing.unit == "steps":
        return dict.fromkeys(phases(freezing), 0.5)
    groups = [frozen_group(freezing, epoch) for epoch in range(settings.epochs)]
    return {group: groups.count(group) / len(groups) for group in dict.fromkeys(groups)}


def _log_ratio(launch: TrainingLaunchSamples, shares: Mapping[FrozenGroup, float]) -> float:
    """Median over rounds of log(dense step / low-rank step), the latter weighted by the phases' shares."""
    lowrank = zip(*(launch.lowrank_ms[phase] for phase in shares), strict=True)
    means = (sum(ms * share for ms, share in zip(steps, shares.values(), strict=True)) for steps in lowrank)
    return median([log(dense) - log(mean) for dense, mean in zip(launch.dense_ms, means, strict=True)])
