"""Plans for large models: how long planning takes, what it gains at equal error, and whether its prediction holds.

    python benchmarks/plan_speed.py [--models resnet50 vit] [--batches 1 4 8] [--threads 2] --out FOLDER

Weights are random, so errors are of the weights and speed is all that is measured. `LatencyRank` gets the error of
uniform ranks, alpha 2 floored to 16, as its budget; both plans are then measured against dense in fresh processes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fronts
import torch
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

from lrd_deploy.bench.compare import compare
from lrd_deploy.bench.layer_latency import MeasuredLatency
from lrd_deploy.bench.model_latency import ModelLatency, random_factors
from lrd_deploy.export.torch_export import INPUT, export_onnx
from lrd_deploy.models.layer import Layer
from lrd_deploy.models.survey import survey
from lrd_deploy.ranks.by_latency import LatencyPlanner
from lrd_deploy.ranks.choose import plan_ranks
from lrd_deploy.ranks.cost import saves_parameters
from lrd_deploy.ranks.forms import largest_ranks
from lrd_deploy.ranks.staircase import forms, with_ranks
from lrd_deploy.recipe import LatencyRank, UniformRank
from lrd_deploy.recipe.settings import Bench
from lrd_deploy.records import RankPlan, Tucker2
from lrd_deploy.rewrite.apply import rewrite_file
from lrd_deploy.rewrite.decompose_node import DecomposeNode

MODELS = {
    "resnet50": lambda: ResNetForImageClassification(ResNetConfig()),
    "vit": lambda: ViTForImageClassification(ViTConfig(num_labels=1000)),
}
UNIFORM = UniformRank(alpha=2, round_to=16)


def main() -> None:
    """Measures what is missing in FOLDER/plans.jsonl, and prints all of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 8])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    store = arguments.out / "plans.jsonl"
    lines = fronts.read(store)
    for model in arguments.models:
        for batch in arguments.batches:
            if any(line["model"] == model and line["batch"] == batch for line in lines):
                continue
            lines.append(measured(model, batch, arguments))
            with store.open("a") as stream:
                stream.write(json.dumps(lines[-1]) + "\n")
    print(table(lines))


def measured(name: str, batch: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One model at one batch: both plans, and what they measure."""
    torch.manual_seed(0)
    module, image = MODELS[name]().eval(), torch.randn(max(batch, 2), 3, arguments.size, arguments.size)
    layers = survey(module, image[:1])
    dense = arguments.out / f"{name}.onnx"
    exported = export_onnx(module, image, dense, opset=20)
    nodes: dict[str, list[str]] = {}
    for origin in exported.origins:
        nodes.setdefault(origin.module, []).append(origin.node)
    inputs = {INPUT: image[:batch].numpy()}
    timer = ModelLatency(dense, nodes, inputs, arguments.threads)
    latency = arguments.out / f"latency-{name}-{batch}.jsonl"
    latency.unlink(missing_ok=True)
    uniform = plan_ranks(layers, UNIFORM)
    budget = sum(layer.predicted_error**2 for layer in uniform.factorised) ** 0.5
    seconds, plans = [], []
    for _ in ("cold", "with the table"):
        started = time.perf_counter()
        source = MeasuredLatency(batch=batch, threads=arguments.threads, store=latency)
        planner = LatencyPlanner(layers, LatencyRank(max_error=budget), source)
        plans.append(planner.plan(timer if not plans else None))
        seconds.append(time.perf_counter() - started)
    plan = plans[0]
    line = {"model": name, "batch": batch, "threads": arguments.threads, "size": arguments.size}
    line |= {"quantum": plan.quantum, "cold_seconds": seconds[0], "table_seconds": seconds[1]}
    line |= {"timings": len(source.table.rows), "sweep": sweep(layers), "budget": budget}
    line |= {"predicted_error": plan.predicted_error, "predicted": plan.predicted_speedup}
    line["control"] = 0.0
    for row, one in (("uniform", uniform), ("latency", plan)):
        target = arguments.out / f"{name}-{row}.onnx"
        choices = {node: layer.choice for layer in one.factorised for node in nodes[layer.name]}
        rewrite_file(dense, [DecomposeNode(choices, random_factors)], target)
        found, _ = compare(dense, target, inputs, Bench(batch=batch, threads=arguments.threads, launches=4, rounds=8))
        line[row] = {"estimate": found.speedup.estimate, "low": found.speedup.low, "high": found.speedup.high}
        line[row] |= {"macs": one.lowrank_macs / one.dense_macs, "kept": kept_dense(one)}
        line["control"] = max(line["control"], abs(found.control.estimate - 1))
    return line


def sweep(layers: Sequence[Layer]) -> int:
    """How many timings a sweep of every rank takes: each form of each distinct layer; Tucker-2's ranks together."""
    count = 0
    for signature in {layer.signature for layer in layers if layer.may_be_factorised}:
        for form in forms(signature):
            ranks = range(1, min(largest_ranks(signature, form)) + 1)
            pairs = ((rank, rank) if isinstance(form, Tucker2) else (rank,) for rank in ranks)
            count += sum(saves_parameters(signature, with_ranks(form, one)) for one in pairs)
    return count


def kept_dense(plan: RankPlan) -> int:
    """How many layers a plan leaves as they are."""
    return len(plan.layers) - len(plan.factorised)


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Two Markdown tables: what is gained, and what planning costs."""
    gains = [
        "| model, batch | uniform, floored to 16 | efficiency | **measured latency**, same error | efficiency | "
        "predicted | A/A |",
        "|---|---|---|---|---|---|---|",
    ]
    costs = [
        "| model, batch | quantum | plan, cold | with the table | timings | every rank | layers kept dense |",
        "|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        uniform, latency = line["uniform"], line["latency"]
        gains.append(
            f"| {line['model']}, {line['batch']} | {interval(uniform)} | {efficiency(uniform):.2f} | "
            f"{interval(latency)} | {efficiency(latency):.2f} | {line['predicted']:.2f}× | ±{line['control']:.1%} |"
        )
        costs.append(
            f"| {line['model']}, {line['batch']} | {line['quantum']} | {line['cold_seconds']:.0f} s | "
            f"{line['table_seconds']:.1f} s | {line['timings']} | {line['sweep']} | {latency['kept']} |"
        )
    return "\n".join(gains) + "\n\n" + "\n".join(costs)


def interval(speedup: dict[str, float]) -> str:
    """A speedup with its interval, short."""
    return f"{speedup['estimate']:.2f}× ({speedup['low']:.2f} to {speedup['high']:.2f})"


def efficiency(speedup: dict[str, float]) -> float:
    """Speedup × share of MACs: 1 where time falls exactly as the arithmetic."""
    return speedup["estimate"] * speedup["macs"]


if __name__ == "__main__":
    main()
