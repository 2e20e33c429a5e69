"""`compress` on exported trained models against uniform ranks: ONNX in and out, no fine-tuning, latency measured."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

import fronts
import graph_rows
import numpy as np
import torch
from graph_cost import accuracy_of, graph_cost
from rank_choice import latency_line
from subjects import SUBJECTS, build, data, dense_weights

from lrd_deploy.bench.compare import compare
from lrd_deploy.decompose.factorize import factors_of
from lrd_deploy.engines import SessionSettings, runtime
from lrd_deploy.engines.inputs import save_arrays
from lrd_deploy.errors import LrdError
from lrd_deploy.export.onnx_file import read_model, write_model
from lrd_deploy.export.onnx_layers import survey_onnx
from lrd_deploy.export.torch_export import INPUT, OUTPUT, export_onnx
from lrd_deploy.models.data import batches
from lrd_deploy.observer import SilentObserver
from lrd_deploy.pipeline.bias_correction import corrected
from lrd_deploy.pipeline.compressing import compress, measuring_here
from lrd_deploy.pipeline.onnx_planning import onnx_evidence
from lrd_deploy.pipeline.onnx_samples import stored_samples
from lrd_deploy.ranks.choose import plan_ranks
from lrd_deploy.recipe import LatencyRank, UniformRank
from lrd_deploy.recipe.settings import Bench
from lrd_deploy.rewrite.apply import apply_rules
from lrd_deploy.rewrite.decompose_node import DecomposeNode

OPSET, SAMPLES, SEED = 20, 512, 0
_PACKAGES = ("torch", "numpy", "onnx", "onnxruntime-gpu", "onnxruntime", "onnx-graphsurgeon", "transformers")
_IDENTITY = ("model", "seed", "budget", *graph_rows.PROVENANCE)  # differ between experiments


@dataclass(frozen=True)
class Uniform:
    """Formula ranks of one alpha for every node; factors are those of the weights alone, and biases stay."""

    ranks: UniformRank


@dataclass(frozen=True)
class WeightedUniform:
    """Formula ranks of one alpha; factors and biases are made as `compress` makes them."""

    ranks: UniformRank


Policy = LatencyRank | Uniform | WeightedUniform
_COMPRESSED: Mapping[str, Policy] = {
    **{f"latency, {speedup:g}×": LatencyRank(target_speedup=speedup) for speedup in (1.25, 1.5, 2)},
    **{f"latency, error {error:g}": LatencyRank(max_error=error) for error in (0.05, 0.2)},
}
_UNIFORM: Mapping[str, Policy] = {
    **{f"alpha {alpha:g}": Uniform(UniformRank(alpha=alpha)) for alpha in (1.1, 1.25, 1.5, 2)},
    **{
        f"weighted, alpha {alpha:g}, floored to 16": WeightedUniform(UniformRank(alpha=alpha, round_to=16))
        for alpha in (1.25, 2)
    },
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's own."""
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=["resnet18", "vit"])
    parser.add_argument("--rows", nargs="+", metavar="NAME", choices=[*all_rows()], help="only these rows, and dense")
    parser.add_argument("--launches", type=int, default=4)
    parser.add_argument("--dense-epochs", type=int, help="instead of the model's own number, to try the script")
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="draw a picture per model there")


def record(options: argparse.Namespace) -> None:
    """Makes and measures every row that is missing; the kinds of rows take turns."""
    for model in options.models:
        rows = ModelRows(model, options)
        chosen = {"dense", *(options.rows or all_rows())}
        for name, policy in all_rows().items():
            if name in chosen and name not in rows.done():
                rows.run(name, policy)
    if options.plot:
        for model, lines in counted(fronts.read(_store(options.out))).items():
            print(fronts.plot(fronts.front(lines, model), options.plot / f"fronts-compress-{model}.svg"))


def tables(out: Path) -> str:
    """Per model all rows, and the fastest of each kind at an accuracy."""
    stored, told = fronts.read(_store(out)), []
    for model, lines in counted(stored).items():
        front = fronts.front(lines, model)
        errors = {line["row"]: line["error"] for line in lines if "error" in line}
        origin = graph_rows.origin_told(lines, sum(line["model"] == model for line in stored) - len(lines))
        told.append(f"## {model}\n\n{_table(front, errors)}\n\n{fronts.summary(front)}\n\n{origin}")
    return "\n\n".join(told)


def counted(stored: Sequence[fronts.Line]) -> dict[str, list[fronts.Line]]:
    """By model, the lines that were made as its last one was: with that budget, machine and versions."""
    models = dict.fromkeys(line["model"] for line in stored)
    own = {model: [line for line in stored if line["model"] == model] for model in models}
    return {model: graph_rows.made_as_last(lines, _IDENTITY) for model, lines in own.items()}


def _table(front: fronts.Front, errors: Mapping[str, float]) -> str:
    """The rows from slow to fast, refusals at the end. The error is of the logits on the test images."""
    rows = ["| row | ranks | output error | accuracy | speedup | MACs | speedup × MACs |", "|---" * 7 + "|"]
    for point in sorted(front.points, key=lambda point: point.speedup):
        speedup = f"{point.speedup:.2f}× ({point.low:.2f} to {point.high:.2f})"
        cells = (point.row, point.ranks or "–", f"{errors[point.row]:.3f}", f"{point.accuracy:.2%}", speedup)
        rows.append(f"| {' | '.join(cells)} | {point.macs:.1%} | {point.efficiency:.2f} |")
    rows += [f"| {row} | refused: {' '.join(reason.split())} | | | | | |" for row, reason in front.refusals.items()]
    return "\n".join(rows)


class ModelRows:
    """All rows of one model."""

    def __init__(self, model: str, options: argparse.Namespace) -> None:
        self.model, self.out, self.epochs = model, options.out, options.dense_epochs
        self.bench = Bench(batch=8, threads=1, launches=options.launches, rounds=20)
        self.images = data(model, SEED)
        self.folder = options.out / "fronts" / (f"{model}-{self.epochs}-epochs" if self.epochs else model)
        self.folder.mkdir(parents=True, exist_ok=True)
        budget = {"dense_epochs": self.epochs or SUBJECTS[model].dense.epochs, "launches": options.launches}
        self.origin = graph_rows.provenance(_PACKAGES)
        self.identity = {"model": model, "seed": SEED, "budget": budget}

    def done(self) -> set[str]:
        """Names of the finished rows."""
        stored = fronts.read(_store(self.out))
        return {line["row"] for line in graph_rows.made_alike(stored, self.identity | self.origin)}

    def run(self, name: str, policy: Policy | None) -> None:
        """Makes a row's file, judges it on the test images and times it against dense, in fresh processes."""
        started = time.perf_counter()
        path = self.folder / f"{''.join(c if c.isalnum() else '-' for c in name)}.onnx"
        try:
            line = {**self._made(policy, path), **self._judged(path)}
        except LrdError as refusal:
            if policy is None:
                raise  # the other rows are judged by the dense one
            line = {"refusal": str(refusal)}
        line = {**self.identity, "row": name, **line, "seconds": round(time.perf_counter() - started, 1)}
        graph_rows.append(_store(self.out), [line], self.origin)
        print(f"{self.model}: {fronts.one_line(line)}", flush=True)

    @cached_property
    def dense(self) -> Path:
        """The trained model's file, made first where it is not there yet."""
        path = self.folder / "dense-model.onnx"
        if not path.exists():
            weights = dense_weights(self.model, SEED, self.out, self.epochs)
            export_onnx(build(self.model, weights).eval(), self.images.example(), path, opset=OPSET)
        return path

    @cached_property
    def samples(self) -> Path:
        """Training images, the same in every call."""
        self.images.train.generator.manual_seed(SEED)
        size = len(next(iter(batches(self.images.train)))[0])
        self.images.train.generator.manual_seed(SEED)
        seen = [inputs for inputs, _ in islice(batches(self.images.train), -(-SAMPLES // size))]
        return save_arrays(self.folder / "samples.npz", {INPUT: torch.cat(seen)[:SAMPLES].numpy()})

    def _made(self, policy: Policy | None, path: Path) -> dict[str, Any]:
        match policy:
            case None:
                path.write_bytes(self.dense.read_bytes())
                return {"ranks": []}
            case LatencyRank():
                samples = stored_samples(self.samples, self.bench.batch)
                store, inputs = self.folder / "latency.jsonl", samples.held_out[0]
                measuring = measuring_here(self.dense, inputs, self.bench, store, [], SilentObserver())
                done = compress(self.dense, path, policy, samples, measuring, SilentObserver())
                return {"ranks": [str(layer.choice) for layer in done.layers]}
            case Uniform() | WeightedUniform():
                return self._uniform(policy, path)

    def _uniform(self, policy: Uniform | WeightedUniform, path: Path) -> dict[str, Any]:
        """Formula ranks in the graph itself, without a measurement."""
        dense = read_model(self.dense)
        layers = survey_onnx(dense)
        plan = plan_ranks(layers, policy.ranks)
        choices = {layer.name: layer.choice for layer in plan.factorised}
        match policy:
            case Uniform():
                lowrank, _, _ = apply_rules(dense, [DecomposeNode(choices)])
            case WeightedUniform():
                calibration = stored_samples(self.samples, self.bench.batch).calibration
                metrics = onnx_evidence(dense, layers, calibration).metrics
                rules = [
                    DecomposeNode({name: choice}, partial(factors_of, metric=metrics.get(name)))
                    for name, choice in choices.items()
                ]
                lowrank, _, _ = apply_rules(dense, rules)
                lowrank, _ = corrected(dense, lowrank, choices, calibration)
        write_model(lowrank, path)
        return {"ranks": [str(layer.choice) for layer in plan.layers]}

    def _judged(self, path: Path) -> dict[str, Any]:
        example = self.images.example()
        comparison, _ = compare(self.dense, path, {INPUT: example[: self.bench.batch].numpy()}, self.bench)
        own, dense = (graph_cost(file, example[:1].numpy()) for file in (path, self.dense))
        return {
            "accuracy": accuracy_of(path, self.images.test),
            "error": self._error(path),
            "macs": own.macs,
            "parameters": own.parameters,
            "dense_macs": dense.macs,
            "dense_parameters": dense.parameters,
            "latency": latency_line(comparison),
        }

    def _error(self, path: Path) -> float:
        """Relative L2 difference of the logits on the test images."""
        runs = [runtime("onnxruntime").load(file, SessionSettings()).run for file in (self.dense, path)]
        pairs = [[run({INPUT: inputs.numpy()})[OUTPUT] for run in runs] for inputs, _ in batches(self.images.test)]
        dense, lowrank = (np.concatenate(outputs) for outputs in zip(*pairs, strict=True))
        return float(np.linalg.norm(lowrank - dense) / np.linalg.norm(dense))


def all_rows() -> dict[str, Policy | None]:
    """Every row by name, dense first; compressed and uniform ones in turn, so that neither has the later hours."""
    turns = chain.from_iterable(zip_longest(_COMPRESSED.items(), _UNIFORM.items()))
    return {"dense": None, **dict(pair for pair in turns if pair)}


def _store(out: Path) -> Path:
    return out / "fronts.jsonl"
