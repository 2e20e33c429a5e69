"""Where the time of one forward pass goes: layer by layer, one model or two side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lrd_deploy.records.environment import Environment
from lrd_deploy.records.measurement import Ratio
from lrd_deploy.records.record import Record

KernelRole = Literal["layer", "reorder"]
KernelGroup = Literal["reorders", "elementwise", "other"]
LayerVerdict = Literal["pays", "loses", "undecided"]


class ProfiledKernel(Record):
    """A kernel of a layer, in the engine's own words.

    `role`: `layer` runs weights of it; `reorder` only turns data from one of its factors to the next.
    """

    name: str
    operator: str
    role: KernelRole
    ms: float


class LayerTime(Record):
    """What one model spends on a layer: the median over launches, and the least and the most that one launch showed.

    `nodes` are those with its weights: its factors, or the one dense node.
    """

    ms: float
    least_ms: float
    most_ms: float
    nodes: tuple[str, ...]
    kernels: tuple[ProfiledKernel, ...]


class ProfiledLayer(Record):
    """A layer in both models; None where one of them has no such layer.

    `chains` are its factors in the candidate, as `rewrite` calls them. `speedup` is base over candidate. There is a
    verdict where the base is dense and the candidate has factors.
    """

    name: str
    base: LayerTime | None
    candidate: LayerTime | None
    chains: tuple[str, ...] = ()
    speedup: Ratio | None = None
    verdict: LayerVerdict | None = None


class KernelSum(Record):
    """Kernels that belong to no layer, together."""

    kernels: int
    ms: float


class LostFusion(Record):
    """A node that runs alone in one model, and in the other along with a kernel that does more."""

    node: str
    operator: str
    alone_in: Literal["base", "candidate"]
    ms: float


class ArmProfile(Record):
    """One model: the whole call without the profiler, with it, and the sum of all kernels; medians over launches.

    `explained` is the sum of all kernels over the whole call without the profiler.
    """

    path: Path
    sha256: str
    whole_ms: float
    profiled_ms: float
    kernels_ms: float
    explained: Ratio
    outside_layers: dict[KernelGroup, KernelSum]


class ModelProfile(Record):
    """One model's time by layer, or two models' side by side; `speedup` is base over candidate, as a whole.

    `timing_overhead_us` is what timing a kernel adds to its time; it was taken off all times of kernels.
    """

    base: ArmProfile
    candidate: ArmProfile | None
    speedup: Ratio | None
    layers: tuple[ProfiledLayer, ...]
    lost_fusions: tuple[LostFusion, ...]
    backend: str
    batch: int
    threads: int
    launches: int
    timing_overhead_us: float
    warnings: tuple[str, ...]
    environment: Environment

    @property
    def losing(self) -> tuple[ProfiledLayer, ...]:
        """The layers whose factors are slower than the dense layer, beyond what the interval leaves open."""
        return tuple(layer for layer in self.layers if layer.verdict == "loses")

    @property
    def losing_chains(self) -> frozenset[str]:
        """The factors of the losing layers, as `rewrite` calls them."""
        return frozenset(chain for layer in self.losing for chain in layer.chains)
