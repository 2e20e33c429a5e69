"""What the launches of a profile say. Pure: stored samples can be concluded from again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, log
from pathlib import Path
from typing import NamedTuple

from lrd_deploy.bench.layer_rows import ArmGraph, Row, lost_fusions, outside_rows, rows_of
from lrd_deploy.bench.profile_launch import Blocks, ProfileSamples, summed
from lrd_deploy.bench.statistics import block_log_ratio, median, ratio_with_interval
from lrd_deploy.bench.weighted_layers import WeightedLayer
from lrd_deploy.errors import BackendError
from lrd_deploy.records import (
    ArmProfile,
    Environment,
    KernelRole,
    KernelSum,
    LayerTime,
    LayerVerdict,
    LostFusion,
    ModelProfile,
    ProfiledKernel,
    ProfiledLayer,
    Ratio,
)

_OVERHEAD_LIMIT = 0.1  # above it timing the kernels costs enough to mention


@dataclass(frozen=True)
class ProfiledFile:
    """An ONNX file and the layers of its graph."""

    path: Path
    sha256: str
    layers: tuple[WeightedLayer, ...]


class Deployment(NamedTuple):
    """What a profile was taken for, and on which machine."""

    backend: str
    batch: int
    threads: int
    environment: Environment


def conclude_profile(
    launches: Sequence[ProfileSamples], files: Mapping[str, ProfiledFile], deployment: Deployment
) -> ModelProfile:
    """Returns every layer's time in every model, speedups with intervals over launches, and what is in no layer.

    Args:
        launches: two or more of the same models.
        files: by arm, "base" and maybe "candidate".
        deployment: for the record.

    Raises:
        BackendError: the engine ran the layers in other groups in one launch than in another.
    """
    joined = [_Joined(samples, files) for samples in launches]
    if len({tuple(row.name for row in one.rows) for one in joined}) > 1:
        raise BackendError(
            "joining the launches of a profile",
            found="layers that ran in one kernel in some launches and in several in others",
            accepted="an engine that runs a model in the same way every time",
            remedy="profile again, and report this with the model if it stays so",
        )
    arms = {arm: _arm(arm, joined, file) for arm, file in files.items()}
    both = "candidate" in files
    return ModelProfile(
        base=arms["base"],
        candidate=arms.get("candidate"),
        speedup=_whole_speedup(launches) if both else None,
        layers=tuple(_layer(number, joined) for number in range(len(joined[0].rows))),
        lost_fusions=_lost_fusions(joined),
        batch=deployment.batch,
        threads=deployment.threads,
        backend=deployment.backend,
        launches=len(launches),
        timing_overhead_us=median([launch.overhead_ns for launch in launches]) / 1e3,
        warnings=_warnings(launches, arms),
        environment=deployment.environment,
    )


@dataclass(frozen=True)
class _Joined:
    """One launch with its kernels joined to layers; names of an engine's own kernels may differ between launches."""

    samples: ProfileSamples
    files: Mapping[str, ProfiledFile]

    @cached_property
    def graphs(self) -> dict[str, ArmGraph]:
        """Every model's layers and kernels."""
        return {arm: ArmGraph(file.layers, self.samples.kernels[arm]) for arm, file in self.files.items()}

    @cached_property
    def rows(self) -> list[Row]:
        """The layers side by side."""
        return rows_of(self.graphs)

    def quiet_ns(self, arm: str, kernels: Sequence[int]) -> list[float]:
        """The time of some kernels together in each round."""
        return _quiet_ns(summed(self.samples.kernel_ns[arm], kernels, self.samples.overhead_ns))

    def ms(self, arm: str, kernels: Sequence[int]) -> float:
        """The median over rounds."""
        return median(self.quiet_ns(arm, kernels)) / 1e6


def _quiet_ns(blocks: Blocks) -> list[float]:
    """By round the mean of the faster half of the calls: of whole microseconds the least alone is too coarse."""
    halves = (sorted(block)[: ceil(len(block) / 2)] for block in blocks)
    return [sum(half) / len(half) for half in halves]


def _log_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    return median([log(above / below) for above, below in zip(numerator, denominator, strict=True)])


def _whole_speedup(launches: Sequence[ProfileSamples]) -> Ratio:
    blocks = [samples.whole_ns for samples in launches]
    return ratio_with_interval([block_log_ratio(one["base"], one["candidate"]) for one in blocks])


def _arm(arm: str, joined: Sequence[_Joined], file: ProfiledFile) -> ArmProfile:
    whole = [_quiet_ns(one.samples.whole_ns[arm]) for one in joined]
    kernels = [one.quiet_ns(arm, range(len(one.samples.kernels[arm]))) for one in joined]
    profiled = [_quiet_ns(one.samples.profiled_ns[arm]) for one in joined]
    outside = [outside_rows(one.rows, arm, one.samples.kernels[arm]) for one in joined]
    return ArmProfile(
        path=file.path,
        sha256=file.sha256,
        whole_ms=_typical_ms(whole),
        profiled_ms=_typical_ms(profiled),
        kernels_ms=_typical_ms(kernels),
        explained=ratio_with_interval([_log_ratio(*both) for both in zip(kernels, whole, strict=True)]),
        outside_layers={
            group: KernelSum(
                kernels=len(numbers),
                ms=median([one.ms(arm, found[group]) for one, found in zip(joined, outside, strict=True)]),
            )
            for group, numbers in outside[0].items()
        },
    )


def _typical_ms(launches: Sequence[Sequence[float]]) -> float:
    """The median over launches of the median over rounds."""
    return median([median(rounds) for rounds in launches]) / 1e6


def _layer(number: int, joined: Sequence[_Joined]) -> ProfiledLayer:
    row = joined[0].rows[number]
    times = {arm: _layer_time(arm, number, joined) for arm in row.arms}
    base, candidate = (row.arms.get(arm) for arm in ("base", "candidate"))
    factors = [layer for layer in candidate.layers if len(layer.nodes) > 1] if candidate else []
    speedup = None
    if base and candidate and all(row.arms[arm].kernels for arm in row.arms):
        speedup = ratio_with_interval([_layer_log_ratio(one, number) for one in joined])
    is_dense = base is not None and all(len(layer.nodes) == 1 for layer in base.layers)
    return ProfiledLayer(
        name=row.name,
        base=times.get("base"),
        candidate=times.get("candidate"),
        chains=tuple(layer.name for layer in factors if layer.is_chain),
        speedup=speedup,
        verdict=_verdict(speedup) if speedup and factors and is_dense else None,
    )


def _layer_log_ratio(one: _Joined, number: int) -> float:
    """Base over candidate."""
    arms = one.rows[number].arms
    return _log_ratio(*(one.quiet_ns(arm, tuple(arms[arm].kernels)) for arm in ("base", "candidate")))


def _verdict(speedup: Ratio) -> LayerVerdict:
    if not speedup.demonstrated:
        return "undecided"
    return "pays" if speedup.estimate > 1 else "loses"


def _layer_time(arm: str, number: int, joined: Sequence[_Joined]) -> LayerTime:
    parts = [(one, one.rows[number].arms[arm]) for one in joined]
    totals = [one.ms(arm, tuple(part.kernels)) for one, part in parts]
    return LayerTime(
        ms=median(totals),
        least_ms=min(totals),
        most_ms=max(totals),
        nodes=tuple(node for layer in parts[0][1].layers for node in layer.nodes),
        kernels=_profiled_kernels(arm, number, joined),
    )


_Key = tuple[KernelRole, str, tuple[str, ...], int]


def _profiled_kernels(arm: str, number: int, joined: Sequence[_Joined]) -> tuple[ProfiledKernel, ...]:
    """The kernels of the first launch, each with its median over the launches that had one alike."""
    found: dict[_Key, list[float]] = {}
    for one in joined:
        for key, kernel in _keyed(arm, number, one).items():
            found.setdefault(key, []).append(one.ms(arm, (kernel,)))
    kernels = joined[0].samples.kernels[arm]
    return tuple(
        ProfiledKernel(name=kernels[kernel].name, operator=kernels[kernel].operator, role=key[0], ms=median(found[key]))
        for key, kernel in _keyed(arm, number, joined[0]).items()
    )


def _keyed(arm: str, number: int, one: _Joined) -> dict[_Key, int]:
    """A row's kernels by what they are: role, operator, nodes, and which of several alike."""
    seen: Counter[tuple[KernelRole, str, tuple[str, ...]]] = Counter()
    keyed = {}
    for kernel, role in sorted(one.rows[number].arms[arm].kernels.items()):
        alike = (role, one.samples.kernels[arm][kernel].operator, one.samples.kernels[arm][kernel].nodes)
        keyed[(*alike, seen[alike])] = kernel
        seen[alike] += 1
    return keyed


def _lost_fusions(joined: Sequence[_Joined]) -> tuple[LostFusion, ...]:
    times: dict[tuple[str, str], list[float]] = {}
    operators: dict[tuple[str, str], str] = {}
    for one in joined:
        for arm, node, kernel in lost_fusions(one.graphs):
            times.setdefault((arm, node), []).append(one.ms(arm, (kernel,)))
            operators[arm, node] = one.samples.kernels[arm][kernel].operator
    return tuple(
        LostFusion(node=node, operator=operators[arm, node], alone_in=arm, ms=median(found))
        for (arm, node), found in times.items()
    )


def _warnings(launches: Sequence[ProfileSamples], arms: Mapping[str, ArmProfile]) -> tuple[str, ...]:
    warnings = []
    unsettled = sum(not launch.warmup_converged for launch in launches)
    if unsettled:
        warnings.append(f"latency had not settled after 3 s of warm-up in {unsettled} of {len(launches)} launches")
    for arm, profile in arms.items():
        overhead = profile.profiled_ms / profile.whole_ms - 1
        if overhead > _OVERHEAD_LIMIT:
            warnings.append(
                f"with the profiler on, calls of the {arm} took {overhead:.0%} longer: its kernels are short, and what "
                "timing them adds is known, and taken off, only on average"
            )
    return tuple(warnings)
