"""Few timings against a timing of every rank: what the plan of each is worth, at the same predicted error.

    python benchmarks/rank_sweep.py [--models resnet vit] [--threads 1] --out FOLDER

Small models at 32 pixels, batch 8, with random weights: a sweep of theirs ends within minutes. It times every rank of
every form (of Tucker-2 those in the proportion of the layer's widths) and plans from all of them; the other plan finds
the quantum and the staircases by itself. The error of uniform ranks is the budget of both, and the two models are
measured against each other in fresh processes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from plan_speed import interval
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

from lrd_deploy.bench.compare import compare
from lrd_deploy.bench.layer_latency import MeasuredLatency
from lrd_deploy.bench.model_latency import random_factors
from lrd_deploy.export.torch_export import INPUT, export_onnx
from lrd_deploy.models.layer import Layer
from lrd_deploy.models.survey import survey
from lrd_deploy.ranks.by_latency import LatencyPlanner
from lrd_deploy.ranks.choose import plan_ranks
from lrd_deploy.ranks.staircase import forms, in_proportion
from lrd_deploy.recipe import LatencyRank, UniformRank
from lrd_deploy.recipe.settings import Bench
from lrd_deploy.records import Choice, LayerSignature, RankPlan
from lrd_deploy.rewrite.apply import rewrite_file
from lrd_deploy.rewrite.decompose_node import DecomposeNode

BATCH, LABELS = 8, 10
_RESNET = {"embedding_size": 64, "hidden_sizes": [64, 96, 128], "depths": [2, 2, 2], "layer_type": "basic"}
_VIT = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 4}
MODELS = {
    "resnet": lambda: ResNetForImageClassification(ResNetConfig(num_labels=LABELS, **_RESNET)),
    "vit": lambda: ViTForImageClassification(ViTConfig(num_labels=LABELS, image_size=32, patch_size=4, **_VIT)),
}
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
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
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
    torch.manual_seed(0)
    module, image = MODELS[name]().eval(), torch.randn(BATCH, 3, 32, 32)
    layers, dense = survey(module, image[:1]), out / f"{name}.onnx"
    nodes = {origin.node: origin.module for origin in export_onnx(module, image, dense, opset=20).origins}
    planners = {how: _Planner(layers, threads, out / f"{name}-{how}.jsonl", how) for how in ("few", "sweep")}
    told = []
    for alpha in ALPHAS:
        uniform = plan_ranks(layers, UniformRank(alpha=alpha, round_to=16))
        budget = sum(layer.predicted_error**2 for layer in uniform.factorised) ** 0.5
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

    def __init__(self, layers: Sequence[Layer], threads: int, store: Path, how: str) -> None:
        store.unlink(missing_ok=True)
        started = time.perf_counter()
        self.source = MeasuredLatency(batch=BATCH, threads=threads, store=store)
        self.quantum = 1 if how == "sweep" else "auto"
        self.planner = LatencyPlanner(layers, self._policy(1.0), self.source)
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
