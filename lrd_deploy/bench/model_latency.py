"""Timing a whole model in the form that a plan gives it: what a plan is corrected by."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import exp
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from lrd_deploy.bench.launch import Clock, interleave
from lrd_deploy.bench.statistics import block_log_ratio, median
from lrd_deploy.decompose.factorize import Factors, SVDFactors, Tucker2Factors
from lrd_deploy.engines import SessionSettings, runtime
from lrd_deploy.engines.backend import Arrays, Runtime
from lrd_deploy.errors import InputError
from lrd_deploy.ranks.forms import factor_shapes
from lrd_deploy.records import Choice, Execution, RankPlan, RewriteReport, Tucker2
from lrd_deploy.rewrite.apply import rewrite_file
from lrd_deploy.rewrite.decompose_node import DecomposeNode

_ROUNDS, _ARM_SECONDS = 12, 1.0
Array = NDArray[np.floating]


@dataclass(frozen=True)
class ModelLatency:
    """Rewrites a dense ONNX file by each plan, with random factors, and times it beside the dense one.

    Attributes:
        dense: the file.
        nodes: the nodes of each layer, by the layer's name; several where the model runs it several times.
        inputs: one batch.
        threads: of the backend.
    """

    dense: Path
    nodes: Mapping[str, Sequence[str]]
    inputs: Arrays
    threads: int
    backend: Runtime = field(default_factory=lambda: runtime("onnxruntime"))
    clock: Clock = time.perf_counter_ns
    execution: Execution = field(default_factory=Execution)

    def latencies_ms(self, plan: RankPlan) -> tuple[float, float]:
        """Returns the latency of the dense model and of the planned one, from interleaved blocks in this process.

        Limits: one process; its figures may be a few percent off what fresh processes show.
        """
        choices = {
            node: planned.choice
            for planned in plan.factorised
            for node in self.nodes.get(planned.name, (planned.name,))
        }
        with TemporaryDirectory(prefix="lrd-deploy-") as folder:
            arms = {"dense": self.dense, "lowrank": Path(folder, "lowrank.onnx")}
            report = rewrite_file(self.dense, [DecomposeNode(choices, random_factors)], arms["lowrank"])
            _check_complete(report)
            settings = SessionSettings(threads=self.threads, execution=self.execution)
            calls = {name: self.backend.load(path, settings).bind(self.inputs) for name, path in arms.items()}
            blocks, _, _ = interleave(calls, self.clock, rounds=_ROUNDS, arm_seconds=_ARM_SECONDS, reverse_first=False)
        dense_ms = median([min(block) for block in blocks["dense"]]) / 1e6
        return dense_ms, dense_ms / exp(block_log_ratio(blocks["dense"], blocks["lowrank"]))


def _check_complete(report: RewriteReport) -> None:
    """A node that was left dense would be timed as if it were factors."""
    if report.skipped:
        first = report.skipped[0]
        raise InputError(
            "rewriting the whole model by its plan",
            found=f"'{first.node}' stayed dense: {first.reason}",
            accepted="a node for every planned layer, which takes its form",
            remedy="leave the layer dense with 'skip' in the recipe",
        )


def random_factors(weight: Array, choice: Choice) -> Factors:
    """Returns factors of the right shapes and scale, which take as long to run as real ones and no time to find."""
    out_channels, in_channels, *kernel = weight.shape
    random = np.random.default_rng(0)
    factors = []
    for shape in factor_shapes(in_channels, out_channels, choice):
        axes = [size if placed else 1 for size, placed in zip(kernel, shape.places, strict=False)]
        size = (shape.out_channels, shape.in_channels, *axes)
        factors.append((random.standard_normal(size) / np.sqrt(np.prod(size[1:]))).astype(weight.dtype))
    if isinstance(choice, Tucker2):
        first, core, last = factors
        return Tucker2Factors(first[:, :, 0, 0], core, last[:, :, 0, 0])
    return SVDFactors(*factors)
