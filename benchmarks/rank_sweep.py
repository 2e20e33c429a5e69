"""Few timings against a timing of every rank: what the plan of each is worth, at the same predicted error.

    python benchmarks/rank_sweep.py [--models resnet18 vit] [--threads 1] --out FOLDER

The models of `rank_choice.py`, trained, with errors weighed by their calibration data: of random weights any rank
loses about as much. The sweep times every rank of every form (in wide layers 128 of them, of Tucker-2 those in the
proportion of the layer's widths) and plans from all of them; the other plan finds the quantum and the staircases by
itself. The error of uniform ranks is the budget of both, and the two models are measured against each other in fresh
processes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from plan_speed import interval
from subjects import build, data, dense_weights

from lrd_deploy.bench.compare import compare
from lrd_deploy.bench.layer_latency import MeasuredLatency
from lrd_deploy.bench.model_latency import random_factors
from lrd_deploy.decompose.evidence import gather_evidence
from lrd_deploy.export.torch_export import INPUT, export_onnx
from lrd_deploy.models.data import batches
from lrd_deploy.models.layer import Layer
from lrd_deploy.models.survey import survey
from lrd_deploy.ranks.by_latency import LatencyPlanner
from lrd_deploy.ranks.choose import plan_ranks
from lrd_deploy.ranks.evidence import Evidence
from lrd_deploy.ranks.staircase import forms, in_proportion
from lrd_deploy.recipe import LatencyRank, UniformRank
from lrd_deploy.recipe.settings import Bench, Calibration
from lrd_deploy.records import Choice, LayerSignature, RankPlan
from lrd_deploy.rewrite.apply import rewrite_file
from lrd_deploy.rewrite.decompose_node import DecomposeNode

BATCH = 8
CALIBRATION_BATCHES = 8
ALPHAS = (1.5, 2.0, 3.0)


@dataclass(frozen=True)
class Planned:
    """A plan, its model, and how many latencies it took in how many seconds."""

    plan: RankPlan
    onnx: Path
    timings: int
    seconds: float


def main() -> None:
    """Prints a Markdown table, a row per model and budget."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=("resnet18", "vit"), default=["resnet18", "vit"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    print("| model, error of | timings: few | sweep | seconds: few | sweep | few against sweep | A/A |")
    print("|---|---|---|---|---|---|---|")
    for name in arguments.models:
        print("\n".join(rows(name, arguments.threads, arguments.out)), flush=True)


def rows(name: str, threads: int, out: Path) -> list[str]:
    """One model at every budget."""
    images, module = data(name, 0), build(name, dense_weights(name, 0, out)).eval()
    images.train.generator.manual_seed(0)
    seen = [inputs for inputs, _ in islice(batches(images.train), CALIBRATION_BATCHES)]
    layers, dense, image = survey(module, seen[0][:1], skip=("classifier*",)), out / f"{name}.onnx", seen[0][:BATCH]
    nodes = {origin.node: origin.module for origin in export_onnx(module, image, dense, opset=20).origins}
    evidence = gather_evidence(module, layers, seen, damping=Calibration().damping)
    planners = {how: _Planner(layers, evidence, threads, out / f"{name}-{how}.jsonl", how) for how in ("few", "sweep")}
    told = []
    for alpha in ALPHAS:
        uniform = plan_ranks(layers, UniformRank(alpha=alpha, round_to=16), evidence=evidence)
        importance = evidence.importance
        budget = sum(importance[layer.name] * layer.predicted_error**2 for layer in uniform.factorised) ** 0.5
        made = {}
        for how, planner in planners.items():
            plan, target = planner.plan(budget), out / f"{name}-{how}-{alpha:g}.onnx"
            chosen = {layer.name: layer.choice for layer in plan.factorised}
            choices = {node: chosen[layer] for node, layer in nodes.items() if layer in chosen}
            rewrite_file(dense, [DecomposeNode(choices, random_factors)], target)
            made[how] = Planned(plan, target, planner.timings, planner.seconds)
        few, swept = made["few"], made["sweep"]
        bench = Bench(batch=BATCH, threads=threads, launches=8, rounds=20)
        found, _ = compare(swept.onnx, few.onnx, {INPUT: image.numpy()}, bench)
        speedup = interval({"estimate": found.speedup.estimate, "low": found.speedup.low, "high": found.speedup.high})
        told.append(
            f"| {name}, alpha {alpha:g} | {few.timings} | {swept.timings} | {few.seconds:.0f} | {swept.seconds:.0f} "
            f"| {speedup} | ±{abs(found.control.estimate - 1):.1%} |"
        )
    return told


class _Planner:
    """Plans for one budget after the other; every latency is timed once."""

    def __init__(self, layers: Sequence[Layer], evidence: Evidence, threads: int, store: Path, how: str) -> None:
        store.unlink(missing_ok=True)
        started = time.perf_counter()
        self.source = MeasuredLatency(batch=BATCH, threads=threads, store=store)
        self.quantum = 1 if how == "sweep" else "auto"
        self.planner = LatencyPlanner(layers, self._policy(1.0), self.source, evidence)
        if how == "sweep":
            self.planner.staircases.ask(every_rank(layers))
        self.seconds = time.perf_counter() - started

    def plan(self, budget: float) -> RankPlan:
        started = time.perf_counter()
        plan = self.planner.aiming_at(self._policy(budget)).plan()
        self.seconds += time.perf_counter() - started
        return plan

    @property
    def timings(self) -> int:
        return len(self.source.table.rows)

    def _policy(self, budget: float) -> LatencyRank:
        return LatencyRank(max_error=budget, quantum=self.quantum)


def every_rank(layers: Sequence[Layer]) -> dict[LayerSignature, list[Choice]]:
    """Every rank that saves weights, of each form of each distinct layer; two ranks of a form go together."""
    free = {layer.signature for layer in layers if layer.may_be_factorised}
    return {
        signature: [choice for form in forms(signature) for choice in in_proportion(signature, form, 1)]
        for signature in free
    }


if __name__ == "__main__":
    main()
