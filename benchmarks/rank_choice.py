"""Rank policies at equal budgets: accuracy against measured latency, beside the peers, in one run.

    python benchmarks/rank_choice.py --models resnet18 resnet50 vit --seeds 0 1 2 --out FOLDER [--peers ENVIRONMENT]
    python benchmarks/rank_choice.py --out FOLDER --plot docs

Every row starts from the same dense weights of its seed, is fine-tuned for the same epochs on the same images in the
same order, and is judged by its ONNX file: accuracy, MACs and latency are all of that file. Latency belongs to a
graph's shapes, not to its weights, so seeds whose graphs are alike share one measurement. Finished rows are lines of
FOLDER/rows.jsonl and are not computed again. ENVIRONMENT is what `peers.py install` made.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fronts
from graph_cost import accuracy_of, graph_cost, graph_digest
from int8 import quantize
from peers import PeerRow
from subjects import SUBJECTS, build, data, fine_tune_, train_dense_

from lrd_deploy.bench.compare import compare
from lrd_deploy.bench.environment import environment
from lrd_deploy.decompose.surgery import decompose_
from lrd_deploy.errors import LrdError
from lrd_deploy.export.torch_export import INPUT, export_onnx
from lrd_deploy.models.source import save_weights
from lrd_deploy.observer import SilentObserver
from lrd_deploy.pipeline.planning import plan_model, planned_metrics
from lrd_deploy.pipeline.workspace import Workspace
from lrd_deploy.recipe import LatencyRank, PaperRank, Policy, Recipe, UniformRank
from lrd_deploy.recipe.settings import Bench, Calibration, PythonData, TransformersConfig
from lrd_deploy.records import Comparison

BENCH = Bench(batch=8, threads=1, launches=4, rounds=20)
SKIP = ("classifier*",)  # as the peers are told
OPSET = 20


@dataclass(frozen=True)
class DenseRow:
    """The dense model; `fine_tuned` gives it the compressed models' epochs on top."""

    fine_tuned: bool


@dataclass(frozen=True)
class Int8Row:
    """The dense model after post-training quantisation."""


@dataclass(frozen=True)
class PolicyRow:
    """The dense model decomposed at a policy's ranks; `weighted` by its inputs, or plainly, as published."""

    policy: Policy
    weighted: bool = False


UNIFORM_ROWS = {
    "formula, alpha 2": PolicyRow(UniformRank(alpha=2)),
    "alpha 2, up to 8": PolicyRow(UniformRank(alpha=2, round_to=8, rounding="up")),
    "alpha 2, floored to 8": PolicyRow(UniformRank(alpha=2, round_to=8)),
    "alpha 2, floored to 16": PolicyRow(UniformRank(alpha=2, round_to=16)),
    "alpha 2, floored to 32": PolicyRow(UniformRank(alpha=2, round_to=32)),
    **{f"alpha {alpha:g}, floored to 16": PolicyRow(UniformRank(alpha=alpha, round_to=16)) for alpha in (1.5, 3, 4, 6)},
    **{  # what is left of the gain when uniform ranks get our factors
        f"alpha {alpha:g}, floored to 16, weighted": PolicyRow(UniformRank(alpha=alpha, round_to=16), weighted=True)
        for alpha in (2, 3, 4, 6)
    },
}
# A name that starts with "latency" is compared in the summary with the best uniform row and the best peer.
MEASURED_ROWS = {
    "paper, alpha 2": PolicyRow(PaperRank(alpha=2)),
    **{
        f"latency, {target:g}×": PolicyRow(LatencyRank(target_speedup=target), weighted=True)
        for target in (1.5, 2, 2.5, 3, 3.5, 4, 5, 6)
    },
}
PEER_ROWS = {
    **{f"AIMET weight SVD {ratio}, multiplicity 8": PeerRow("aimet", ratio) for ratio in (0.5, 0.35, 0.25)},
    **{f"Torch-Pruning {ratio}, round_to 16": PeerRow("pruning", ratio) for ratio in (0.2, 0.3, 0.45, 0.6)},
}

Row = DenseRow | Int8Row | PolicyRow | PeerRow


def all_rows(*, peers: bool) -> dict[str, Row]:
    """Every row by its name, dense first."""
    return {
        "dense": DenseRow(fine_tuned=False),
        "dense, fine-tuned": DenseRow(fine_tuned=True),
        "dense INT8": Int8Row(),
        **UNIFORM_ROWS,
        **MEASURED_ROWS,
        **(PEER_ROWS if peers else {}),
    }


def main() -> None:
    """Computes the rows that are missing, then prints the tables."""
    arguments = parse_arguments()
    results = arguments.out / "rows.jsonl"
    if not arguments.plot:
        rows = all_rows(peers=arguments.peers is not None)
        if arguments.rows:
            rows = {name: rows[name] for name in rows if name in {"dense", *arguments.rows}}
        for seed in arguments.seeds:
            for model in arguments.models:
                Bout(arguments, model, seed, results).run(rows)
    stored = fronts.read(results)
    for model in {line["model"]: None for line in stored}:
        front = fronts.front(stored, model, list(all_rows(peers=True)))
        print(f"\n## {model}\n\n{fronts.table(front)}\n\n{fronts.summary(front)}")
        if arguments.plot:
            print(f"\n{fronts.plot(front, arguments.plot / f'fronts-{model}.svg')}")


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True, help="results and dense weights are kept here")
    parser.add_argument("--peers", type=Path, metavar="ENVIRONMENT", help="the environment that peers.py installed")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="only these rows, and dense")
    parser.add_argument("--dense-epochs", type=int, help="instead of the model's own number, to try the script")
    parser.add_argument("--epochs", type=int, help="of fine-tuning, instead of the model's own number")
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="compute nothing; draw the stored rows there")
    return parser.parse_args()


class Bout:
    """All rows of one model and seed."""

    def __init__(self, arguments: argparse.Namespace, model: str, seed: int, results: Path) -> None:
        self.arguments, self.model, self.seed, self.results = arguments, model, seed, results
        self.folder = arguments.out / model / f"seed-{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.weights, self.dense_onnx = self.folder / "dense.safetensors", self.folder / "dense.onnx"
        self.images = data(model, seed)
        self.identity = {"model": model, "seed": seed, "budget": self._budget()}

    def run(self, rows: dict[str, Row]) -> None:
        """Computes what is missing and appends it."""
        done = {line["row"] for line in fronts.read(self.results) if self.identity.items() <= line.items()}
        missing = {name: row for name, row in rows.items() if name not in done}
        if missing:
            self._ensure_dense()
        for name, row in missing.items():
            started = time.perf_counter()
            line = {**self.identity, "row": name, "kind": type(row).__name__, **self._attempt(name, row)}
            line["seconds"] = round(time.perf_counter() - started, 1)
            with self.results.open("a") as stream:
                stream.write(json.dumps(line) + "\n")
            print(f"{self.model} seed {self.seed}: {fronts.one_line(line)}", flush=True)

    def _budget(self) -> dict[str, Any]:
        """What a stored row must have been made with to count as finished."""
        subject, dense, tuning = SUBJECTS[self.model], self.arguments.dense_epochs, self.arguments.epochs
        return {
            "dense_epochs": dense or subject.dense.epochs,
            "epochs": tuning or subject.fine_tune.epochs,
            "learning_rate": subject.fine_tune.learning_rate,
            **subject.task,
        }

    def _ensure_dense(self) -> None:
        """Dense weights belong to their number of epochs; their file says which."""
        trained_for = self.folder / "dense-epochs.txt"
        epochs = str(self.identity["budget"]["dense_epochs"])
        if self.weights.is_file() and trained_for.is_file() and trained_for.read_text() == epochs:
            return
        started = time.perf_counter()
        module = train_dense_(build(self.model, seed=self.seed), self.model, self.seed, int(epochs))
        save_weights(module, self.weights)
        export_onnx(module, self.images.example(), self.dense_onnx, opset=OPSET)
        trained_for.write_text(epochs)
        print(f"{self.model} seed {self.seed}: dense trained in {time.perf_counter() - started:.0f} s", flush=True)

    def _attempt(self, name: str, row: Row) -> dict[str, Any]:
        """A row's figures, or why there are none."""
        onnx = self.folder / f"{''.join(c if c.isalnum() else '-' for c in name)}.onnx"
        try:
            made = self._make(row, onnx)
        except LrdError as refusal:
            return {"refusal": str(refusal)}
        if "refusal" in made:
            return made
        judged = {**made, "accuracy": accuracy_of(onnx, self.images.test), **self._cost(row, onnx)}
        judged["latency"] = self._latency(onnx)
        if onnx != self.dense_onnx:
            onnx.unlink()
        return judged

    def _make(self, row: Row, onnx: Path) -> dict[str, Any]:
        """Writes the row's ONNX file and returns what is known of how it came about."""
        match row:
            case DenseRow(fine_tuned=False):
                onnx.write_bytes(self.dense_onnx.read_bytes())
                return {}
            case DenseRow():
                return self._fine_tuned(build(self.model, self.weights), onnx)
            case Int8Row():
                quantize(self.dense_onnx, onnx, calibration(self.images))
                return {}
            case PolicyRow():
                return self._decomposed(row, onnx)
            case PeerRow():
                task = ["--model", self.model, "--seed", str(self.seed), "--weights", str(self.weights)]
                task += ["--epochs", str(self.identity["budget"]["epochs"])]
                return row.run(self.arguments.peers / "bin" / "python", task, onnx)

    def _decomposed(self, row: PolicyRow, onnx: Path) -> dict[str, Any]:
        """Plans as `lrd-deploy plan` does, decomposes and fine-tunes."""
        started = time.perf_counter()
        module, work = build(self.model, self.weights), self._workspace(row)
        plan = plan_model(work, module, self.images).plan
        seconds = time.perf_counter() - started
        decompose_(module, plan, planned_metrics(work, module, self.images, plan))
        return {
            "ranks": [str(layer.choice) for layer in plan.layers],
            "plan_seconds": round(seconds, 1),
            "predicted_speedup": plan.predicted_speedup,
            "planned_speedup": plan.measured_speedup,
            "predicted_error": plan.predicted_error,
            **self._fine_tuned(module, onnx),
        }

    def _workspace(self, row: PolicyRow) -> Workspace:
        """A folder that all rows share, so that no layer is timed twice."""
        subject = SUBJECTS[self.model]
        recipe = Recipe(
            name=self.model,
            model=TransformersConfig(transformers=subject.config),
            data=PythonData(python="hard_digits:make_loaders", arguments=subject.task),
            dense=subject.dense,
            ranks=row.policy,
            fine_tune=subject.fine_tune,
            calibration=Calibration(samples=256 if row.weighted else 0),
            skip=SKIP,
            bench=BENCH,
            seed=self.seed,
        )
        self.images.train.generator.manual_seed(self.seed)
        return Workspace(recipe, None, self.arguments.out, SilentObserver())

    def _fine_tuned(self, module: Any, onnx: Path) -> dict[str, Any]:
        started = time.perf_counter()
        fine_tune_(module, self.model, self.seed, self.arguments.epochs)
        seconds = time.perf_counter() - started
        export_onnx(module, self.images.example(), onnx, opset=OPSET)
        return {"fine_tune_seconds": round(seconds, 1)}

    def _cost(self, row: Row, onnx: Path) -> dict[str, int]:
        """Quantisation changes neither count, and hides the weights behind DequantizeLinear."""
        example = self.images.example()[:1].numpy()
        dense = graph_cost(self.dense_onnx, example)
        own = dense if isinstance(row, Int8Row) else graph_cost(onnx, example)
        return {
            "macs": own.macs,
            "parameters": own.parameters,
            "dense_macs": dense.macs,
            "dense_parameters": dense.parameters,
        }

    def _latency(self, onnx: Path) -> dict[str, Any]:
        """Measures against dense, or returns what a graph of the same shapes has been measured at."""
        store = self.arguments.out / "comparisons.jsonl"
        key = {
            "graphs": [graph_digest(self.dense_onnx), graph_digest(onnx)],
            "bench": BENCH.model_dump(mode="json"),
            "machine": environment().fingerprint,
        }
        stored = next((line for line in fronts.read(store) if key.items() <= line.items()), None)
        if stored is None:
            example = {INPUT: self.images.example()[: BENCH.batch].numpy()}
            comparison, _launches = compare(self.dense_onnx, onnx, example, BENCH)
            stored = {**key, **latency_line(comparison)}
            with store.open("a") as stream:
                stream.write(json.dumps(stored) + "\n")
        return {name: value for name, value in stored.items() if name not in key}


def latency_line(comparison: Comparison) -> dict[str, Any]:
    """What of a comparison goes into a row."""
    speedup = comparison.speedup
    return {
        "speedup": {"estimate": speedup.estimate, "low": speedup.low, "high": speedup.high},
        "control": comparison.control.estimate,
        "dense_p50_ms": comparison.base.p50_ms,
        "p50_ms": comparison.candidate.p50_ms,
        "warnings": list(comparison.warnings),
        "cpu": comparison.environment.cpu,
    }


def calibration(images: Any, count: int = 8) -> Iterator[Any]:
    """Yields training batches, the same for every call."""
    images.train.generator.manual_seed(0)
    for number, (inputs, _labels) in enumerate(images.train):
        if number == count:
            return
        yield inputs.numpy()


if __name__ == "__main__":
    main()
