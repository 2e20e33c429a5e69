"""What the gate does on this machine: false alarms and detected slowdowns, from launches of a model beside itself."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from statistics import stdev

from lrd_deploy.bench.compare import fresh_launches
from lrd_deploy.bench.environment import environment
from lrd_deploy.engines.inputs import allowed_batches, repeated
from lrd_deploy.export.onnx_file import graph_inputs, read_model
from lrd_deploy.gate.measure import LENGTH, Launches
from lrd_deploy.gate.notebook import launch_ratio
from lrd_deploy.gate.reference import Reference
from lrd_deploy.gate.sequence import most_launches
from lrd_deploy.gate.simulate import disjoint_rates, resampled_rates
from lrd_deploy.observer import Observer, SilentObserver
from lrd_deploy.records import GatePolicy, LaunchRatio, SelfTest

_GATES = 200
_SEED = 1


def self_test(
    reference: Reference,
    policy: GatePolicy,
    *,
    batch: int,
    threads: int,
    observer: Observer | None = None,
    source: Launches = fresh_launches,
) -> SelfTest:
    """Records launches of a model beside itself, twice what one gate may take, and plays gates on them.

    Args:
        reference: the model.
        policy: of the gate that is tested.
        batch: as deployed; the one that the model fixes, where it does.
        threads: as deployed.
        observer: hears of every launch.
        source: where launches come from.
    """
    observer = observer or SilentObserver()
    (size,) = allowed_batches(graph_inputs(read_model(reference.model)), [batch])
    inputs = {name: repeated(array, size) for name, array in reference.samples.inputs.items()}
    pool: list[LaunchRatio] = []
    launches = 2 * most_launches(policy)
    with closing(source(reference.model, reference.model, inputs, threads, LENGTH, observer)) as found:
        for samples in islice(found, launches):
            pool.append(launch_ratio(samples))
            observer.progress("recording launches", len(pool), launches)
    return conclude_self_test(pool, policy)


def conclude_self_test(pool: Sequence[LaunchRatio], policy: GatePolicy) -> SelfTest:
    """Returns how often gates on recorded launches pass, fail and cannot tell."""
    slowdowns = (0.0, policy.max_slowdown, 2 * policy.max_slowdown)
    return SelfTest(
        launches=len(pool),
        per_launch_sd=stdev(launch.candidate for launch in pool),
        resampled=tuple(
            resampled_rates(pool, policy, slowdown=slowdown, gates=_GATES, seed=_SEED) for slowdown in slowdowns
        ),
        disjoint=tuple(disjoint_rates(pool, policy, slowdown=slowdown) for slowdown in slowdowns),
        policy=policy,
        environment=environment(),
    )
